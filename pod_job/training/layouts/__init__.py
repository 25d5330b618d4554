"""Layouts of SAEs on disk: that of SAELens, which is the native one, and those that other libraries read or write."""
