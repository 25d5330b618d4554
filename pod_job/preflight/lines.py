"""The preflight's report as lines for people."""

from collections.abc import Iterator
from typing import Any


def lines(report: dict[str, Any]) -> Iterator[str]:
    """The report for people."""
    step = report["step"]
    yield f"pod         {report['pod']}: {step['chips']} chips, topology {step['topology']}"
    yield f"compiled    in {step['compile_s']:.0f} s"
    yield from (f"{name:<12}{text}" for name, text in step_lines(step))
    for each in report["changes"]:
        works = "fits" if each["fits"] else "does not fit either"
        speed = f"{each['tokens_per_s']:,.0f} tokens/s, bound by {each['bottleneck']}"
        yield f"change      {each['change']}: {works}, {speed}"
    if run := report["run"]:
        yield f"run         {run['samples']:,} samples, about {run['tokens']:,} tokens, {run['rows']:,} rows per tap,"
        yield f"            {run['bytes'] / 1e9:,.2f} GB in all; {run['steps']:,} steps, {run['hours']:.3f} hours"
        yield f"cost        ${run['usd_list']:,.2f} at list price, about ${run['usd_spot']:,.2f} on spot"
        yield f"            ({report['prices']})"


def step_lines(step: dict[str, Any]) -> Iterator[tuple[str, str]]:
    gib = 1 << 30
    kinds = ", ".join(f"{kind} {size / gib:.2f}" for kind, size in step["hbm"].items() if kind != "total")
    total, available = step["hbm"]["total"] / gib, step["hbm_available"] / gib
    yield "memory", f"{total:.2f} of {available:.0f} GiB per chip" + (f": {kinds}" if kinds else "")
    if not step["fits"]:
        yield "", "DOES NOT FIT"
        return
    causes = ", ".join(f"{cause} {1e3 * seconds:.1f}" for cause, seconds in step["seconds"].items())
    yield "step", f"{1e3 * step['step_s']:.1f} ms, bound by {step['bottleneck']} (ms: {causes})"
    mfu = f"MFU {step['mfu']:.1%}, {step['compute_mfu']:.1%} if only compute took time"
    yield "speed", f"{step['tokens_per_s']:,.0f} tokens/s on the pod; {mfu}"
    for each in step["collectives"]:
        yield "collective", f"{each['count']} x {each['kind']} of {each['bytes']:,} bytes"
    yield "results", f"{step['stored_bytes'] / 1e9:.2f} GB per step from all chips"
