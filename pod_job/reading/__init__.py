"""Reading of finished runs: rows by index, and epochs in shuffled blocks."""
