"""Instructions of the attention kernels are counted turn by turn of their loops."""

import pytest

from pod_job.preflight.kernel_bundles import Bundles, CacheBundles, read_bundles, read_cache_bundles


def bundle(address: int, text: str = "", kind: str = "") -> str:
    return f"{address:#7x} {kind}  : > {{ {text} }}"


def kernel(begin: int, pair: int, end: int) -> str:
    """Final bundles as libtpu writes them: a guard around three regions of these sizes, and a small one for a copy."""
    lines, at = ["CT: control target", bundle(0), bundle(0x10, kind="LB")], 0x20
    lines.append(bundle(at, "%1 = sbr.rel (%p1) target = $region82"))
    for number, size in ((16, 20), (98, begin), (102, pair), (106, end)):
        at += 8
        lines.append(bundle(at, f"%2 = sbr.rel (%p2) target = $region{number}  ;;  %s3 = sld"))
        at += size
        lines.append(bundle(at, f"%4 = sld /* Start/End empty region {number} :: Start region 99 */", "PF"))
    lines.append(bundle(at + 8, "/* Start/End empty region 82 */", "PF"))
    lines.append(bundle(at + 16, "%46 = sbr.rel (!%p5) target = $region221"))
    return "\n".join(lines)


def test_a_turn_is_what_the_regions_leave() -> None:
    # From 0x10 to the branch back: 16 to the guard, 4 x 8 before the regions, the copy's 20, and 16 after them.
    assert read_bundles(kernel(198, 1189, 434)) == Bundles(turn=16 + 32 + 20 + 16, pair=1189, queries=632)


def test_a_block_of_the_cache_is_what_the_regions_of_a_row_leave() -> None:
    assert read_cache_bundles(kernel(198, 1189, 434)) == CacheBundles(block=16 + 32 + 20 + 16, row=198 + 1189 + 434)


def test_pairs_turns_and_blocks_of_queries_add_up() -> None:
    bundles = Bundles(turn=305, pair=1189, queries=632)
    assert bundles.cycles(pairs=3, blocks=2) == 3 * 1189 + 4 * 305 + 2 * 632


@pytest.mark.parametrize("text", ["", "   0x1   : > { }", bundle(0x10, kind="LB")])
def test_text_without_such_a_loop_is_refused(text: str) -> None:
    for read in (read_bundles, read_cache_bundles):
        with pytest.raises(ValueError, match="no loop"):
            read(text)
