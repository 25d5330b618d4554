"""Formats of other programs: pickle files, SAELens."""
