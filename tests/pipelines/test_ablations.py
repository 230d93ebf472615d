"""A finding of the paper holds where our seeds say so, is reversed where they say the opposite, and else is left open."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pipelines.ablations import HOLDS, REVERSED, UNDECIDED, judge, summarize, verdict_of
from pipelines.ablations_text import write_ablation
from pipelines.config.params import load_params
from pipelines.stages.ablation import plot_table

ROOT = Path(__file__).parents[2]
NOISE = {"base": 0.83, "0.0": 0.80, "0.25": 0.85, "0.5": 0.90, "0.75": 0.70, "0.95": 0.80}
REGULARIZER = {"base": 5.0, "ce-0.01": 9.0, "ce-0.1": 3.0, "ce-1.0": 4.0, "kl-0.01": 9.5, "kl-0.1": 3.5, "kl-1.0": 4.5}
REWARD = {"base": 5.0, "mse": 15.0, "perceptual": 16.0, "mse+perceptual": 14.0, "prior": 4.9, "va-pi": 3.0}


def sets(rows, spread=0.001, seeds=(4, 5, 6)):
    """Scores of every row around a mean, in which seeds differ by about `spread`."""
    random = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "row": row,
            "seed": seed,
            "extractor": "scorer-classifier",
            "fid": mean * (1 + spread * random.normal()),
            "is_mean": 10 / mean,
            "accuracy": mean * (1 + spread * random.normal()),
        }
        for row, mean in rows.items()
        for seed in seeds
    )


def verdicts(table, rows, score, **options):
    findings = judge(sets(rows, **options), table)
    return findings[findings["score"] == score].set_index("text")["verdict"].to_dict()


def test_a_clear_order_confirms_or_reverses_the_paper():
    found = verdicts("noise", NOISE, "accuracy")
    assert found["noise helps: ξ = 0.5 is better than 0"] == HOLDS
    assert found["noise helps: ξ = 0.75 is better than 0"] == REVERSED
    assert found["ξ = 0.5 is the best: better than 0.25"] == HOLDS


def test_lower_is_better_for_fid_alone():
    assert set(verdicts("regularizer", REGULARIZER, "fid").values()) == {HOLDS}
    assert (
        verdict_of(0.1, 0.2, lower_is_better=False) == HOLDS and verdict_of(0.1, 0.2, lower_is_better=True) == REVERSED
    )


def test_differences_within_seed_noise_are_left_open():
    assert verdicts("reward", REWARD, "fid", spread=0.05)["the prior alone is better than no alignment"] == UNDECIDED
    assert set(verdicts("reward", REWARD, "fid", seeds=(4,)).values()) == {UNDECIDED}  # a single seed has no spread


def test_claims_about_rows_that_were_not_run_are_not_made():
    found = verdicts("noise", {row: mean for row, mean in NOISE.items() if row in ("base", "0.0", "0.25")}, "fid")
    assert list(found) == ["noise helps: ξ = 0.25 is better than 0"]


def test_the_summary_has_a_t_interval_around_the_mean():
    rows = sets({"base": 5.0}, spread=0.01)
    row = summarize(rows).iloc[0]
    assert row["fid"] == pytest.approx(rows["fid"].mean())
    assert row["fid_high"] - row["fid"] == pytest.approx(4.3027 * row["fid_se"], rel=1e-3)  # t of 2 degrees of freedom


@pytest.mark.parametrize(("table", "rows"), [("noise", NOISE), ("regularizer", REGULARIZER), ("reward", REWARD)])
def test_the_report_shows_the_papers_numbers_ours_and_a_verdict_on_every_claim(tmp_path, table, rows):
    params, scores = load_params(ROOT / "params.yaml"), sets(rows)
    summary, findings = summarize(scores), judge(scores, table)
    write_ablation(tmp_path / "table.md", table, params, summary, findings)
    text = (tmp_path / "table.md").read_text()
    for published in {"noise": ("0.339",), "regularizer": ("7.65", "22.5"), "reward": ("38.63", "116.7")}[table]:
        assert published in text
    assert f"of {len(findings[findings['score'] == 'fid'])} findings over 3 seeds" in text
    assert f"{params.sample.count:,} images" in text and "95 %" in text
    plot_table(tmp_path / "table.png", table, summary)
    assert (tmp_path / "table.png").stat().st_size > 5000


@pytest.mark.filterwarnings("error")
def test_one_seed_is_shown_without_interval_and_p_value_in_text_and_figure(tmp_path):
    scores = sets(REWARD, seeds=(4,))
    summary, findings = summarize(scores), judge(scores, "reward")
    write_ablation(tmp_path / "table.md", "reward", load_params(ROOT / "params.yaml"), summary, findings)
    text = (tmp_path / "table.md").read_text()
    assert "nan" not in text.lower()
    row = findings.query("score == 'fid' and better == 'prior'").iloc[0]
    assert f"| {row['text']} | {row['mean']:+.3g} | {UNDECIDED} |  |" in text
    plot_table(tmp_path / "table.png", "reward", summary)
    assert (tmp_path / "table.png").stat().st_size > 5000
