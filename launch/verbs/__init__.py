"""The launcher's verbs, one file each."""
