"""Units of bytes: decimal ones for files and rates, binary ones for the memory of a chip."""

MB = 1_000_000
GB = 1_000_000_000
GIB = 1 << 30


def size_text(size: int | float) -> str:
    """Returns a number of bytes for people, with two digits after the point: 0.00 of any unit is never shown."""
    for unit, name in ((GB, "GB"), (MB, "MB"), (1000, "kB")):
        if size >= unit:
            return f"{size / unit:,.2f} {name}"
    return f"{size:,.0f} bytes"
