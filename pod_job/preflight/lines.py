"""The preflight's report as lines for people."""

from collections.abc import Iterator
from typing import Any

GIB = 1 << 30


def lines(report: dict[str, Any]) -> Iterator[str]:
    """The report for people."""
    for name, text in facts(report):
        yield f"{name:<12}{text}"


def facts(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    step, decode = report["step"], report["decode"]
    yield "pod", f"{report['pod']}: {step['chips']} chips, topology {step['topology']}"
    yield "weights", report["weights"].removeprefix("weights ")
    yield "compiled", f"{'earlier, ' if report['cached'] else ''}in {step['compile_s']:.0f} s"
    yield from program_lines(step, report)
    if decode:
        yield from program_lines(decode, report)
        yield "generation", f"{report['tokens_per_s']:,.0f} new tokens/s on the pod, prefill included"
    for each in report["changes"]:
        works = "fits" if each["fits"] else "does not fit either"
        speed = f", {each['tokens_per_s']:,.0f} tokens/s, bound by {each['bottleneck']}" if each["fits"] else ""
        yield "change", f"{each['change']}: {works}{speed}"
    if run := report["run"]:
        yield from run_lines(run, report["prices"])
    if measured := report["measured"]:
        yield from measured_lines(measured)


def program_lines(found: dict[str, Any], report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    hbm = found["hbm"]
    kinds = ", ".join(f"{kind} {size / GIB:.2f}" for kind, size in hbm.items() if kind != "total")
    total, available = hbm["total"] / GIB, found["hbm_available"] / GIB
    yield found["program"], f"memory {total:.2f} of {available:.2f} GiB per chip" + (f": {kinds}" if kinds else "")
    if not found["fits"]:
        yield "", "DOES NOT FIT"
        return
    causes = ", ".join(f"{cause} {1e3 * seconds:.1f}" for cause, seconds in found["seconds"].items())
    turns = found["tokens_in_turn"]
    each = f" for {turns} tokens of each row, {1e3 * found['step_s'] / turns:.2f} ms a token" if turns > 1 else ""
    yield "", f"time {1e3 * found['step_s']:.1f} ms{each}, bound by {found['bottleneck']} (ms: {causes})"
    mfu = f"MFU {found['mfu']:.1%}, {found['compute_mfu']:.1%} if only compute took time"
    yield "", f"speed {found['tokens_per_s']:,.0f} tokens/s on the pod; {mfu}"
    for moved in found["collectives"]:
        yield "", f"collective {moved['count']} x {moved['kind']} of {moved['bytes']:,} bytes"
    yield "", results_line(found, report)


def results_line(found: dict[str, Any], report: dict[str, Any]) -> str:
    """What leaves the chips in one run, and what takes it."""
    rates, size = report["rates"], found["stored_bytes"]
    said = {name: ", assumed" if name in rates["assumed"] else "" for name in ("host_gb_s", "bucket_gb_s")}
    host = f"{size / found['chips'] / 1e6:,.1f} MB from each chip at {rates['host_gb_s']:g} GB/s{said['host_gb_s']}"
    bucket = (
        f"{size / report['hosts'] / 1e6:,.1f} MB from each host at {rates['bucket_gb_s']:g} GB/s{said['bucket_gb_s']}"
    )
    return f"results {size / 1e9:.2f} GB from all chips: {host}; {bucket}"


def run_lines(run: dict[str, Any], prices: str) -> Iterator[tuple[str, str]]:
    new = f" and at most {run['new_tokens']:,} new ones" if run["new_tokens"] else ""
    yield "run", f"{run['samples']:,} samples, about {run['tokens']:,} tokens{new}, {run['rows']:,} rows per tap,"
    yield "", f"{run['bytes'] / 1e9:,.2f} GB in all; {run['steps']:,} steps, {run['hours']:.3f} hours"
    yield "cost", f"${run['usd_list']:,.2f} at list price, about ${run['usd_spot']:,.2f} on spot"
    yield "", f"({prices})"


def measured_lines(measured: dict[str, Any]) -> Iterator[tuple[str, str]]:
    where = f"{measured['hosts']} hosts of {measured['device'] or 'unknown devices'}, {measured['steps']:,} steps"
    yield "measured", f"{measured['run_dir']}: {where}"
    for name in ("step", "token"):
        if one := measured[name]:
            ratio = one["ratio"]
            off = f"{ratio - 1:+.0%}" if ratio < 10 else f"{ratio:,.0f} times that"
            yield "", f"{name} {1e3 * one['measured_s']:.2f} ms, predicted {1e3 * one['predicted_s']:.2f}: {off}"
    for each in measured["differs"]:
        yield "", f"not the same job: {each}"
