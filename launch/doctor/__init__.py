"""Checks of `pod-job doctor`, by subject; each returns its finding in one line."""
