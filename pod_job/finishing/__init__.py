"""Work on committed batches: merge, compaction, shuffle."""
