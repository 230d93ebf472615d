"""The results of a benchmark as the lines that its command prints."""

from typing import Any

ROWS = (  # of results with "ours" and "authors": key, title, factor, format
    ("median_seconds", "seconds, median", 1.0, ".4g"),
    ("median_cpu_seconds", "CPU seconds, median", 1.0, ".4g"),
    ("peak_bytes", "peak memory, MiB", 2.0**-20, ".1f"),
    ("flops", "TFLOP", 1e-12, ".4g"),
    ("share_of_matmul_rate", "share of the rate of a matrix product", 1.0, ".0%"),
    ("share_of_memory_limit", "share of the memory's bandwidth", 1.0, ".0%"),
    ("images_per_second", "images a second", 1.0, ".4g"),
)


def summary(name: str, results: dict[str, Any]) -> list[str]:
    """Ratios, then what was measured of each side; what was measured of neither is left out."""
    lines = []
    if "ratio" in results:
        low, high = results["ratio_range"]
        lines.append(f"{name}: {results['ratio']:.2f} times as fast ({low:.2f} to {high:.2f})")
    if "cpu_ratio" in results:
        low, high = results["cpu_ratio_range"]
        lines.append(f"by CPU time {results['cpu_ratio']:.2f} ({low:.2f} to {high:.2f})")
    if results.get("share_of_flop_ratio") is not None:
        lines.append(f"FLOPs allow {results['flop_ratio']:.2f}; {results['share_of_flop_ratio']:.0%} of it")
    if "packing" in results:
        packing = results["packing"]
        low, high = packing["cpu_ratio_range"]
        gain = f"{packing['cpu_ratio']:.2f} ({low:.2f} to {high:.2f})"
        lines.append(
            f"packed weights, by CPU time beside plain ones: {gain}; {packing['equal_tokens']:.1%} equal tokens"
        )
    sides = [(title, factor, form, results[key]) for key, title, factor, form in ROWS if _measured(results, key)]
    if sides:
        lines.append(f"{'':40}{'ours':>12}{'authors':>12}")
    for title, factor, form, values in sides:
        lines.append(f"{title:40}" + "".join(_cell(values.get(side), factor, form) for side in ("ours", "authors")))
    for stage, seconds in results.get("start_up_seconds_beyond_torch", {}).items():
        lines.append(f"{f'seconds to import {stage}, beyond torch':40}{seconds:>12.2f}")
    if "unchanged_repro_seconds" in results:
        lines.append(f"{'seconds of an unchanged dvc repro':40}{results['unchanged_repro_seconds']:>12.2f}")
    return lines


def _measured(results: dict[str, Any], key: str) -> bool:
    values = results.get(key)
    return isinstance(values, dict) and any(value is not None for value in values.values())


def _cell(value: float | None, factor: float, form: str) -> str:
    return f"{'-':>12}" if value is None else f"{value * factor:>12{form}}"
