"""`vapi report --readme` fills the table of results in README.md from reports/metrics.json.

Run it before the report is committed. A test compares the two.
"""

from pathlib import Path
from typing import Any

from pipelines.config.paths import REPORTS
from pipelines.config.variant import BASE, CONTINUED, SUBJECT
from vapi_core.errors import FileError
from vapi_core.files import atomic_path, read_json

README, METRICS = Path("README.md"), REPORTS / "metrics.json"
START, END = "<!-- results -->", "<!-- /results -->"
EXTRACTOR, SECOND, PLAIN = "scorer-classifier", "uci-classifier", " g=1.0"
SECOND_FID = "second_fid"  # FID under the second extractor, beside the scores of the first
SCORES = {"fid": "FID", SECOND_FID: "FID, second network", "accuracy": "class accuracy", "recall": "recall"}
NAMES = {BASE: "base", CONTINUED: "trained further with cross-entropy, the same noise", SUBJECT: "VA-π"}

Settings = dict[str, dict[str, float]]  # of one extractor: row and guidance -> scores


def sharpened(settings: Settings) -> list[str]:
    """The rows of the base at other temperatures, from high to low.

    Raises:
        FileError: there is none.
    """
    prefix = f"{BASE} at T "
    rows = [name.removesuffix(PLAIN) for name in settings if name.startswith(prefix) and name.endswith(PLAIN)]
    if not rows:
        raise FileError(METRICS, "the base was drawn at one temperature only.", "Add one to `controls` in params.yaml.")
    return sorted(rows, key=lambda row: float(row.removeprefix(prefix)), reverse=True)


def results(settings: Settings) -> str:
    """The table: the base, its controls and VA-π, four scores, each with its interval over seeds."""
    lines = [["", *SCORES.values()], ["---"] * (len(SCORES) + 1)]
    for row in (BASE, CONTINUED, *sharpened(settings), SUBJECT):
        scores = settings[row + PLAIN]
        lines.append([NAMES.get(row, row), *(cell(scores, name) for name in SCORES)])
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    seeds = int(settings[SUBJECT + PLAIN]["seeds"])
    return f"{table}\n\nMean and 95 % interval over {seeds} seeds."


def cell(scores: dict[str, float], name: str) -> str:
    """A mean and its interval; of one seed the score alone."""
    if f"{name}_low" not in scores:
        return f"{scores[name]:.3f}"
    return f"{scores[name]:.3f} [{scores[f'{name}_low']:.3f}, {scores[f'{name}_high']:.3f}]"


def filled(text: str, settings: Settings) -> str:
    """README's text with the results in their place.

    Raises:
        FileError: the marks of the place are missing.
    """
    if text.count(START) != 1 or text.count(END) != 1:
        raise FileError(README, f"it must have the line {START} and the line {END} once.")
    before, rest = text.split(START)
    return f"{before}{START}\n{results(settings)}\n{END}{rest.split(END)[1]}"


def read_settings(metrics: Path = METRICS) -> Settings:
    """The scores of the two digit classifiers.

    Raises:
        FileError: there are none, or none of the rows that the table shows.
    """
    content: dict[str, Any] = read_json(metrics, "Run `dvc repro report`.")
    for extractor in (EXTRACTOR, SECOND):
        if lacking := [row for row in NAMES if row + PLAIN not in content.get(extractor, {})]:
            remedy = "Run `make profile NAME=mnist` and `dvc repro report`."
            raise FileError(metrics, f"it has no scores of {', '.join(lacking)} under {extractor}.", remedy)
    return with_second(content[EXTRACTOR], content[SECOND])


def with_second(settings: Settings, second: Settings) -> Settings:
    """The scores of each setting, and its FID under the second extractor."""
    return {
        name: scores
        | {SECOND_FID + end: second[name][f"fid{end}"] for end in ("", "_low", "_high") if f"fid{end}" in second[name]}
        for name, scores in settings.items()
    }


def fill() -> None:
    """Fills it.

    Raises:
        FileError: the scores or the place for them are missing.
    """
    text = filled(README.read_text(encoding="utf-8"), read_settings())
    with atomic_path(README) as temporary:
        temporary.write_text(text, encoding="utf-8")
