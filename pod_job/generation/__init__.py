"""mode=generate: waves of prompts, prefill and decode with a cache, completions and ARC predictions."""
