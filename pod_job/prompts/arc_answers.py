"""A model's answer back to a grid: the first block of lines of digits, in any of the styles that models write them."""

import re

from pod_job.prompts.arc import Grid

MOST_CELLS = 30
"""Rows or columns of an ARC grid at most."""

# "1 2 3", "123", "1,2,3", "[1, 2, 3],", with or without a row number and a colon before it.
ROW = re.compile(r"\s*\[*\s*(?:\d{1,2}\s*:\s*)?\[?\s*(\d(?:[\s,]*\d)*)\s*\]*\s*,?\s*")


def parse_grid(text: str) -> tuple[Grid | None, str]:
    """Returns the grid and an empty reason, or None and why the answer is not one.

    Lines before the first row are passed over (a heading, words, a code fence), and what follows the last row is cut.
    """
    rows: Grid = []
    for line in text.splitlines():
        match = ROW.fullmatch(line)
        if match:
            rows.append([int(digit) for digit in re.findall(r"\d", match[1])])
        elif rows:
            break
    if not rows:
        return None, "no row of digits"
    widths = sorted({len(row) for row in rows})
    if len(widths) > 1:
        return None, f"rows of {' and '.join(map(str, widths[:3]))} cells"
    if len(rows) > MOST_CELLS or widths[0] > MOST_CELLS:
        return None, f"{len(rows)} x {widths[0]} cells, more than {MOST_CELLS} x {MOST_CELLS}"
    return rows, ""
