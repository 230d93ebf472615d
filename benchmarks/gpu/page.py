"""The page: what was measured against what it was to be, then every part, also one that failed or was stopped."""

from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.gpu.parts import Part
from benchmarks.gpu.process import Outcome
from benchmarks.measure import Results

STEP_TARGET, SAMPLING_TARGET, RECIPE_TARGET = 5.0, 3.0, 10.0  # times, times, minutes
MODES = ("eager", "compiled")
Row = Iterable[str]


def page(parts: list[Part], outcomes: list[Outcome], quick: bool, about: str) -> str:
    """Markdown of what is known so far; `about` says what was run, and when."""
    of = {outcome.part: outcome for outcome in outcomes}
    machine = of["machine"].results.get("machine", {}) if "machine" in of else {}
    lines = [f"# {machine.get('device', 'An unknown machine')}", "", about, ""]
    if quick:
        lines += ["**The quick form, on tiny models: it shows that all of it runs. Its numbers say nothing.**", ""]
    facts = [f"{name.replace('_', ' ')} {_fact(name, value)}" for name, value in machine.items() if name != "device"]
    lines += [", ".join(facts) + ".", ""] if facts else []
    lines += ["## Targets", "", *table(("target", "measured", ""), target_rows(of, quick)), ""]
    states = [
        (p.name, of[p.name].status if p.name in of else "not begun", f"{of[p.name].seconds:.0f}", of[p.name].message)
        if p.name in of
        else (p.name, "not begun", "", "")
        for p in parts
    ]
    lines += ["## Parts", "", *table(("part", "", "seconds", ""), states), ""]
    for part in parts:
        if part.name in of and (results := of[part.name].results):
            lines += [f"## {part.title}", "", *section(part.name, results), ""]
    return "\n".join(lines).rstrip() + "\n"


def table(titles: Row, rows: Iterable[Row]) -> list[str]:
    cells = [tuple(titles), *(tuple(row) for row in rows)]
    lines = ["| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in row) + " |" for row in cells]
    return [lines[0], "|" + " --- |" * len(cells[0]), *lines[1:]]


# Targets


def target_rows(of: dict[str, Outcome], quick: bool) -> list[Row]:
    rows = []
    for part, model in (("step-xl", "LlamaGen-XL"), ("step-xxl", "LlamaGen-XXL")):
        text = f"{model}: a step {STEP_TARGET:g} times as fast as the authors' schedule"
        rows.append(_target(text, _best(of, part, "ratio", max), lambda x: x >= STEP_TARGET, "{:.2f} times", quick))
    for part, model in (("sampling-xl", "LlamaGen-XL"), ("sampling-xxl", "LlamaGen-XXL")):
        text = f"{model}: sampling {SAMPLING_TARGET:g} times as fast as the official schedule"
        rows.append(_target(text, _best(of, part, "ratio", max), lambda x: x >= SAMPLING_TARGET, "{:.2f} times", quick))
    text = f"LlamaGen-XXL: the paper's 100 steps of 128 images in less than {RECIPE_TARGET:g} minutes"
    minutes = _best(of, "recipe-xxl", "minutes", min)
    return [*rows, _target(text, minutes, lambda x: x < RECIPE_TARGET, "{:.1f} minutes", quick)]


def _best(of: dict[str, Outcome], part: str, key: str, best: Callable[[list[float]], float]) -> float | None:
    """The better of what was measured in eager mode and compiled, if any was."""
    results = of[part].results if part in of else {}
    values = [results[mode][key] for mode in MODES if mode in results]
    return best(values) if values else None


def _target(text: str, value: float | None, met: Callable[[float], bool], form: str, quick: bool) -> Row:
    if value is None:
        return text, "not measured", ""
    return text, form.format(value), "says nothing" if quick else ("met" if met(value) else "**missed**")


# Parts


def section(name: str, results: Results) -> list[str]:
    """The table of a part, and a line of what else it found."""
    kind = name.partition("-")[0]
    lines = {"step": _sides, "sampling": _sides, "recipe": _recipe, "parity": _parity}.get(kind, _nothing)(results)
    facts = [f"- {_words(key)}: {_fact(key, value)}" for key, value in _plain(results)]
    blocks = [block for block in (_setting(results.get("setting")), lines, facts) if block]
    return [line for block in blocks for line in (*block, "")][:-1]


def _setting(setting: Results | None) -> list[str]:
    if setting is None:
        return []
    s = setting
    guidance = f", guidance {s['guidance_scale']:g}" if "guidance_scale" in s else ""
    return [
        f"{s['generator']}, {s['parameters'] / 1e6:.4g} million parameters; {s['tokens']} tokens, {s['image_size']} pixels, "
        f"G = {s['group_size']}, {s['perceptual']}, {s['dtype']}{guidance}."
    ]


def _nothing(results: Results) -> list[str]:
    return []


LIMITS = {"share_of_memory_limit": "of the memory limit", "share_of_matmul_rate": "of the rate of a matrix product"}


def _sides(results: Results) -> list[str]:
    modes = [mode for mode in MODES if mode in results]
    if not modes:
        return []
    limit = next(name for name in LIMITS if name in results[modes[0]])
    rows = []
    for mode in modes:
        r = results[mode]
        low, high = r["ratio_range"]
        for side in ("ours", "authors"):
            ratio = f"{r['ratio']:.2f} ({low:.2f} to {high:.2f})"
            first = f"{r['first_seconds']:.3g}" if "first_seconds" in r else ""
            rows.append(
                (
                    f"{side}, {mode}",
                    f"{r['median_seconds'][side]:.3g}",
                    ratio if side == "ours" else "",
                    f"{r['images_per_second'][side]:.3g}",
                    f"{r[limit][side]:.0%}",
                    _gigabytes(r["peak_bytes"][side]),
                    first if side == "ours" else "",
                )
            )
    titles = ("", "seconds", "times as fast", "images/s", LIMITS[limit], "peak beside weights, GB", "first run, s")
    return table(titles, rows)


def _recipe(results: Results) -> list[str]:
    rows = [
        (mode, ", ".join(f"{s:.3g}" for s in r["step_seconds"]), f"{r['first_seconds']:.3g}", f"{r['minutes']:.1f}")
        + (_gigabytes(r["peak_bytes"]),)
        for mode in MODES
        if (r := results.get(mode))
    ]
    titles = ("", "seconds of a step", "first step, s", "minutes of all steps", "peak beside weights, GB")
    return table(titles, rows) if rows else []


def _parity(results: Results) -> list[str]:
    titles = ("fixture", "", "compared", "worst quantity", "error", "tolerance", "")
    return table(
        titles,
        (
            (r["fixture"], r["dtype"], str(r["compared"]), r["quantity"], f"{r['error']:.2g}")
            + (f"{r['tolerance']:.0e}" if r["tolerance"] else "exact", "pass" if r["passed"] else "**FAIL**")
            for r in results.get("fixtures", [])
        ),
    )


def _plain(results: Results) -> Iterable[tuple[str, Any]]:
    """What is in no table, name by name; groups are taken apart."""
    for key, value in results.items():
        if key in (*MODES, "fixtures", "machine", "setting"):
            continue
        if isinstance(value, dict):
            yield from ((f"{key} {inner}", one) for inner, one in value.items() if inner != "rows")
        else:
            yield key, value


def _words(key: str) -> str:
    return key.replace("_", " ")


def _fact(key: str, value: Any) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(_fact(key, v) for v in value)
    if "bytes_per_second" in key:
        return f"{value / 1e9:.0f} GB/s"
    if "flops_per_second" in key:
        return f"{value / 1e12:.3g} TFLOP/s"
    if "bytes" in key:
        return f"{value / 1e9:.3g} GB"
    if "flops" in key:
        return f"{value / 1e12:.4g} TFLOP"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _gigabytes(value: float | None) -> str:
    return "unknown" if value is None else f"{value / 1e9:.3g}"
