"""From task files to token ids: sources, ARC prompts and augmentation, chat templates, the tokenizer."""
