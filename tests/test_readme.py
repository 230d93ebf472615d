"""The table of README.md says what reports/metrics.json says."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from pipelines.commands import readme
from pipelines.reporting.statistics import nested, summarize
from vapi_core.errors import FileError

NUMBER = re.compile(r"\d+\.\d+")


def scores(fid: float, accuracy: float, recall: float, precision: float) -> dict[str, float]:
    values = {"fid": fid, "second_fid": 4 * fid, "accuracy": accuracy, "recall": recall}
    ends = {f"{name}_{end}": value + by for name, value in values.items() for end, by in (("low", -0.1), ("high", 0.1))}
    return {**values, **ends, "precision": precision, "seeds": 3}


SETTINGS = {
    "base g=1.0": scores(1.5, 0.66, 0.83, 0.74),
    "base g=1.5": scores(0.8, 0.84, 0.81, 0.84),
    "base at T 0.8 g=1.0": scores(0.9, 0.79, 0.79, 0.815),
    "base at T 0.6 g=1.0": scores(0.87, 0.88, 0.68, 0.88),
    "va-pi g=1.0": scores(0.69, 0.94, 0.67, 0.84),
    "cross-entropy g=1.0": scores(1.48, 0.67, 0.87, 0.72),
}


def rows_of(text: str) -> dict[str, list[str]]:
    """Name -> cells, of the rows between the marks."""
    block = text.split(readme.START)[1].split(readme.END)[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines() if line[:1] == "|"]
    return {name: rest for name, *rest in cells[2:]}


def test_every_number_of_the_readme_is_the_reports():
    metrics = json.loads(Path("reports/metrics.json").read_text())
    rows = rows_of(Path("README.md").read_text(encoding="utf-8"))
    assert len(rows) == 5
    for name, cells in rows.items():
        row = {
            "base": "base",
            "trained further with cross-entropy, the same noise": "cross-entropy",
            "VA-π": "va-pi",
        }.get(name, name)
        first, second = (metrics[name][f"{row} g=1.0"] for name in ("scorer-classifier", "uci-classifier"))
        columns = ((first, "fid"), (second, "fid"), (first, "accuracy"), (first, "recall"))
        for (reported, score), cell in zip(columns, cells, strict=True):
            wanted = [reported[score], reported[f"{score}_low"], reported[f"{score}_high"]]
            assert [float(n) for n in NUMBER.findall(cell)] == pytest.approx(wanted, abs=0.00051), (row, score)


def test_the_table_is_filled_with_means_and_intervals_and_the_rest_of_the_page_stays():
    page = f"# Title\n\n{readme.START}\nold\n{readme.END}\n\nThe end.\n"
    text = readme.filled(page, SETTINGS)
    assert text.startswith(f"# Title\n\n{readme.START}\n|") and text.endswith(f"{readme.END}\n\nThe end.\n")
    assert rows_of(text)["VA-π"] == [
        "0.690 [0.590, 0.790]",
        "2.760 [2.660, 2.860]",
        "0.940 [0.840, 1.040]",
        "0.670 [0.570, 0.770]",
    ]
    assert "over 3 seeds" in text and "old" not in text
    assert readme.filled(text, SETTINGS) == text


def test_the_base_is_shown_at_every_temperature_from_high_to_low():
    rows = list(rows_of(readme.filled(f"{readme.START}{readme.END}", SETTINGS)))
    assert rows[2:] == ["base at T 0.8", "base at T 0.6", "VA-π"]
    alone = {name: scores for name, scores in SETTINGS.items() if " at T " not in name}
    with pytest.raises(FileError, match="at one temperature only"):
        readme.results(alone)


def test_the_reports_metrics_are_what_the_table_is_filled_from():
    settings = [("base", 1.0, 1.5), ("base at T 0.8", 0.8, 0.9), ("va-pi", 1.0, 0.7), ("cross-entropy", 1.0, 1.4)]
    sets = [
        {"row": row, "temperature": temperature, "guidance_scale": 1.0, "seed": seed, "extractor": "scorer-classifier"}
        | {"reference": "heldout", "fid": fid + seed / 10, "accuracy": 0.9, "recall": 0.7, "precision": 0.8}
        for row, temperature, fid in settings
        for seed in (4, 5)
    ]
    settings = nested(summarize(pd.DataFrame(sets)))["scorer-classifier"]
    cells = rows_of(readme.filled(f"{readme.START}{readme.END}", readme.with_second(settings, settings)))["VA-π"]
    assert cells[0][:5] == cells[1][:5] == "1.150"


def test_a_score_of_one_seed_stands_alone():
    alone = {"fid": 0.5, "second_fid": 2.0, "accuracy": 0.9, "recall": 0.7, "precision": 0.8, "seeds": 1}
    text = readme.results(dict.fromkeys(SETTINGS, alone))
    assert "| VA-π | 0.500 | 2.000 | 0.900 | 0.700 |" in text


def test_a_page_without_marks_and_a_report_of_another_profile_are_refused(tmp_path):
    with pytest.raises(FileError, match=re.escape(readme.END)):
        readme.filled(f"{readme.START} only", SETTINGS)
    metrics = tmp_path / "metrics.json"
    metrics.write_text(json.dumps({"inception-v3-compat": SETTINGS}))
    with pytest.raises(FileError, match="no scores of base, cross-entropy, va-pi"):
        readme.read_settings(metrics)
