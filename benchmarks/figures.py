"""Figures of results: times of both sides and how peak memory grows, or start-up of the stages. Needs matplotlib."""

from pathlib import Path
from typing import Any

COLOURS = {"ours": "tab:blue", "authors": "tab:orange"}


def save_figure(path: Path, title: str, results: dict[str, Any]) -> None:
    """Times of the pairs, and beside them one panel for each quantity that memory was measured over."""
    from matplotlib.figure import Figure

    grown: dict[str, list[dict[str, Any]]] = {}
    for row in results.get("growth", []):
        grown.setdefault(row["quantity"], []).append(row)
    figure = Figure(figsize=(4 * (1 + len(grown)), 3.2), layout="constrained")
    panels = figure.subplots(1, 1 + len(grown), squeeze=False)[0]
    for place, (name, values) in enumerate(results["seconds"].items()):
        panels[0].bar(place, results["median_seconds"][name], color=COLOURS[name], alpha=0.5, label=name)
        panels[0].plot([place] * len(values), values, "k.", markersize=4)
    panels[0].set_xticks(range(len(results["seconds"])), list(results["seconds"]))
    panels[0].set_ylabel("seconds")
    panels[0].set_title(f"{title}: {results['ratio']:.2f} times as fast", fontsize=9)
    for panel, (quantity, rows) in zip(panels[1:], grown.items(), strict=True):
        for name, colour in COLOURS.items():
            points = [(row["value"], row[name] / 2**20) for row in rows if row.get(name) is not None]
            if points:
                panel.plot(*zip(*points, strict=True), "o-", color=colour, label=name)
        panel.set_xticks([row["value"] for row in rows])
        panel.set_xlabel(quantity.replace("_", " "))
        panel.set_ylabel("peak memory of a run, MB")
        panel.set_ylim(bottom=0)
        panel.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def save_start_up(path: Path, results: dict[str, Any]) -> None:
    """Seconds to import each stage, and of an unchanged repro where it was timed."""
    from matplotlib.figure import Figure

    bars = {f"import {stage}": seconds for stage, seconds in results["start_up_seconds_beyond_torch"].items()}
    colours = [COLOURS["ours"]] * len(bars)
    if "unchanged_repro_seconds" in results:
        bars["unchanged `dvc repro`"] = results["unchanged_repro_seconds"]
        colours.append("tab:gray")
    figure = Figure(figsize=(6, 0.4 * len(bars) + 0.9), layout="constrained")
    panel = figure.subplots()
    panel.bar_label(panel.barh(list(bars), list(bars.values()), color=colours, alpha=0.5), fmt="%.2f", padding=2)
    panel.invert_yaxis()
    panel.set_xlabel("seconds; of imports, beyond torch")
    panel.margins(x=0.15)
    panel.set_title("pipeline: what comes before the work", fontsize=9)
    figure.savefig(path, dpi=120)
