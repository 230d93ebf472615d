"""The report says what the scores say, in both directions."""

import shutil
import subprocess

import pandas as pd
import pytest
from pipelines.reporting.statistics import compare, nested, summarize
from pipelines.config.params import load_params
from pipelines.report_text import findings, markdown_table, write_report
from pipelines.stages.report import best_control, stages_behind

from pipelines.repository.graph import stage_graph

NO_PROTOCOL = {"reference_batch": None, "inception_sha256": None}


def scores(base, sharpened, aligned, continued):
    """A table of stage `score` with one extractor and reference, three seeds each."""
    rows = []
    for model, temperature, fids in (
        ("base", 1.0, base),
        ("base", 0.8, sharpened),
        ("va-pi", 1.0, aligned),
        ("cross-entropy", 1.0, continued),
    ):
        for seed, fid in enumerate(fids):
            rows.append(
                {
                    "model": model,
                    "seed": seed,
                    "temperature": temperature,
                    "guidance_scale": 1.0,
                    "extractor": "scorer-classifier",
                    "reference": "heldout",
                    "fid": fid,
                    "is_mean": 9.0,
                    "precision": 0.7,
                    "recall": 0.6,
                    "samples": 1000,
                }
            )
    return pd.DataFrame(rows)


@pytest.fixture
def params():
    return load_params()


def told(table, params):
    return findings(compare(table, 1.0), params)


def test_a_clear_gain_meets_the_target_and_beats_the_controls(params):
    lines = told(scores([20.0, 20.2, 19.8], [15.0, 15.1, 14.9], [10.0, 10.1, 9.9], [19.0, 19.1, 18.9]), params)
    assert "-50%" in lines[0] and "is met" in lines[0]
    assert "0.8" in lines[1] and "is better" in lines[1]
    assert "against cross-entropy" in lines[2] and "is better" in lines[2]


def test_a_gain_that_a_lower_temperature_beats_is_told_as_a_loss(params):
    lines = told(scores([20.0, 20.2, 19.8], [9.0, 9.1, 8.9], [12.0, 12.1, 11.9], [19.0, 19.1, 18.9]), params)
    assert "is met" in lines[0]
    assert "is worse" in lines[1]


def test_a_gain_within_the_noise_is_not_called_one(params):
    lines = told(scores([20.0, 22.0, 18.0], [15.0, 15.1, 14.9], [12.0, 25.0, 15.0], [19.0, 19.1, 18.9]), params)
    assert "is missed" in lines[0]
    assert "cannot be told apart" in lines[2]


def test_metrics_hold_the_reference_that_is_given():
    table = scores([10.0] * 3, [1.0] * 3, [5.0] * 3, [1.0] * 3)
    summary = summarize(pd.concat([table, table.assign(reference="train", fid=0.0)]))
    metrics = nested(summary[summary["reference"] == "heldout"])
    assert metrics["scorer-classifier"]["va-pi T=1.0 g=1.0"]["fid"] == 5.0


def test_the_report_is_written_whole(tmp_path, params):
    table = scores([20.0, 20.2, 19.8], [15.0, 15.1, 14.9], [10.0, 10.1, 9.9], [19.0, 19.1, 18.9])
    stages = {"tokenizer": {"seconds": 1.0, "peak_memory_mb": 2.0, "codebook_usage": 0.9, "reconstruction_mse": 0.01}}
    write_report(tmp_path / "report.md", params, summarize(table), compare(table, 1.0), stages, NO_PROTOCOL)
    text = (tmp_path / "report.md").read_text()
    assert "| va-pi | 1.0 | 1.0 | 10 ± 0.058 [9.9, 10.1] |" in text and "nan" not in text.split("## Findings")[1]
    assert "1,000 images" in text and "Holm" in text


def test_a_markdown_table_has_one_line_per_row():
    assert markdown_table(["a", "b"], [[1, 2]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_one_seed_has_no_interval_and_the_report_says_so(tmp_path, params):
    table = scores([20.0], [15.0], [10.0], [19.0])
    lines = told(table, params)
    assert "cannot be judged from one seed" in lines[0] and "nan" not in " ".join(lines)
    write_report(tmp_path / "report.md", params, summarize(table), compare(table, 1.0), {}, NO_PROTOCOL)
    assert "nan" not in (tmp_path / "report.md").read_text().split("## Findings")[1]


def test_the_base_s_temperature_of_the_same_precision_is_named_under_every_table(tmp_path, params):
    table = scores([20.0, 20.2, 19.8], [15.0, 15.1, 14.9], [10.0, 10.1, 9.9], [19.0, 19.1, 18.9])
    table.loc[table["temperature"] == 0.8, "precision"] = 0.8
    table.loc[table["model"] == "va-pi", "precision"] = 0.79
    guided = table[table["temperature"] == 1.0].assign(guidance_scale=1.5)
    table = pd.concat([table, guided])
    write_report(tmp_path / "report.md", params, summarize(table), compare(table, 1.0), {}, NO_PROTOCOL)
    text = (tmp_path / "report.md").read_text()
    assert "va-pi (0.790) T 0.8 (0.800); cross-entropy (0.700) T 1.0 (0.700)." in text
    write_report(tmp_path / "report.md", params, summarize(guided), compare(guided, 1.0), {}, NO_PROTOCOL)
    assert "Nothing was drawn without guidance" in (tmp_path / "report.md").read_text()


def test_the_best_control_is_not_the_main_temperature(params):
    table = scores([5.0] * 3, [15.0] * 3, [10.0] * 3, [19.0] * 3)
    assert best_control(table, "scorer-classifier", "heldout", main=1.0) == 0.8
    assert best_control(table, "scorer-classifier", "heldout", main=0.8) == 1.0
    assert best_control(table[table["temperature"] == 1.0], "scorer-classifier", "heldout", main=1.0) is None


@pytest.mark.parametrize("profile", ["mnist", "llamagen-xl-c2i", "scenes"])
def test_the_report_tells_of_the_stages_that_dvc_runs_for_its_profile_and_of_no_other(profile, tmp_path, monkeypatch):
    for name in ("dvc.yaml", ".dvc/config"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(name, tmp_path / name)
    params = shutil.copy(f"profiles/{profile}.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "-q"], check=True)
    assert set(stages_behind(load_params(params))) == set(stage_graph("report")) - {"report"}
