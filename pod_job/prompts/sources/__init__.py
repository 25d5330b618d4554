"""Task sources: each module reads one format into samples."""
