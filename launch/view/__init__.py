"""Output of the launcher: tables, progress, summaries, timed lines."""
