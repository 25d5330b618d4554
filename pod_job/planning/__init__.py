"""Checks and sizes everything before a device is touched."""
