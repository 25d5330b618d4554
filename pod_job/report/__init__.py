"""A run as one page for people: `python -m pod_job.report RUN_DIR`."""
