"""Prefill: samples packed into rows, the compiled step, and the pipeline that brings its rows into batches."""
