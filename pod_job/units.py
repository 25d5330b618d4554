"""Units of bytes: decimal ones for files and rates, binary ones for the memory of a chip."""

MB = 1_000_000
GB = 1_000_000_000
GIB = 1 << 30
