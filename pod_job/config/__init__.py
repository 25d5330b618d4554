"""The schema of the configuration, and how Hydra fills it."""
