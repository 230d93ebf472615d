"""A figure of a benchmark's results: times of both sides, and how peak memory grows. Needs matplotlib."""

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
        panel.set_xlabel(quantity.replace("_", " "))
        panel.set_ylabel("peak memory of a run, MB")
        panel.set_ylim(bottom=0)
        panel.legend(fontsize=8)
    figure.savefig(path, dpi=120)
