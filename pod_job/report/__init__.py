"""A run as one page for people: `pod-job report RUN_DIR`."""
