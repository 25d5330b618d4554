"""Sparse autoencoders as pure functions: one file per architecture, `kinds.py` chooses among them."""
