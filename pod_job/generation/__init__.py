"""mode=generate: prompts into free rows of a cache, decode over all rows, completions and ARC predictions."""
