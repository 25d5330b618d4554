"""Use from a notebook: a model with hooks in one call, and a run in this process over a list of texts."""
