"""Manifests of other engines that start the job: JobSet on GKE, and SkyPilot."""
