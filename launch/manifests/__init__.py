"""Manifests of other engines: JobSet on GKE and SkyPilot, which start the job, and systemd, which watches it."""
