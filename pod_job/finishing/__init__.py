"""What is done with committed batches: merge, compaction, shuffle."""
