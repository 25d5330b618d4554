"""Benchmarks: one table of cases, one way to measure, one record. `python -m tools.bench --list` shows the cases."""
