"""The table of rivals calls a difference one only where the test does, and says so in both directions."""

from pathlib import Path

import networkx
import numpy as np
import pandas as pd
import pytest
from pipelines.reporting.statistics import compare, match_temperatures, summarize
from pipelines.reporting.figures import plot_densities
from pipelines.config.params import load_params
from pipelines.rivals_text import findings, write_rivals
from pipelines.stages.rivals import project, ways

from pipelines.stages.sample import plan_sets
from tests.pipelines.test_comparison import BASE_PRECISION, compared, table

ROOT = Path(__file__).parents[2]


def test_the_findings_name_what_va_pi_wins_ties_and_loses():
    lines = findings(compared(table()))
    plain = next(line for line in lines if "guidance 1.0, FID" in line)
    assert "wins against base at T 1.0, ste" in plain and "ties with base at T 0.9" in plain
    assert "loses to ste" in next(line for line in lines if "guidance 1.5, FID" in line)


def test_the_report_is_written_whole_with_the_test_and_the_number_of_images(tmp_path):
    params, scores = load_params(), table()
    summary = summarize(scores)
    matches = match_temperatures(summary, 1.0)
    stages = {f"align@va-pi-{seed}": {"images_per_second": 40.0, "seconds": 50.0} for seed in params.align.seeds}
    write_rivals(tmp_path / "rivals.md", params, summary, matches, compare(scores, 1.0, matches), stages)
    text = (tmp_path / "rivals.md").read_text()
    assert "| base, precision of va-pi | 0.9 | 1.0 | 1,000 | 3 |" in text and "Holm" in text
    assert "| base | 0.8" not in text  # nobody's precision
    assert "va-pi (0.721) T 0.9 (0.701); ste (0.611) T 1.0 (0.601)." in text
    assert "1,000 images" in text and "Pairs of each: 3." in text and "| va-pi | 40 |" in text
    assert "tokenizer's encoder, which is no network that scores or rewards" in text


def test_one_seed_has_neither_interval_nor_p_value_and_the_report_shows_no_nan(tmp_path):
    scores = table().query("seed == 0")
    summary = summarize(scores)
    matches = match_temperatures(summary, 1.0)
    write_rivals(tmp_path / "rivals.md", load_params(), summary, matches, compare(scores, 1.0, matches), {})
    text = (tmp_path / "rivals.md").read_text()
    assert "nan" not in text.lower() and " ± " not in text.replace("Mean ± standard error", "")
    fids = scores.query("guidance_scale == 1.0 and temperature == 1.0").set_index("model")["fid"]
    assert f"| 1.0 | FID | ste | {fids['va-pi'] - fids['ste']:+.3g} |  |  | tie |" in text


def test_without_va_pi_there_is_a_table_but_nothing_to_compare(tmp_path):
    scores = table()
    scores = scores[scores["model"] != "va-pi"]
    summary = summarize(scores)
    matches = match_temperatures(summary, 1.0)
    write_rivals(tmp_path / "rivals.md", load_params(), summary, matches, compare(scores, 1.0, matches), {})
    assert "not among the methods" in (tmp_path / "rivals.md").read_text()


def test_points_are_projected_on_the_axes_in_which_real_images_vary_most(tmp_path):
    random = np.random.default_rng(0)
    real = random.normal(size=(300, 5)) * [5.0, 0.1, 3.0, 0.1, 0.1]
    points, share = project({"real": real, "base": real + [10.0, 0, 0, 0, 0]})
    assert share > 0.99
    assert np.allclose(points["base"] - points["real"], points["base"][0] - points["real"][0])
    assert np.linalg.norm(points["base"][0] - points["real"][0]) == pytest.approx(10.0, rel=0.01)
    plot_densities(tmp_path / "densities.png", points, share)
    assert (tmp_path / "densities.png").stat().st_size > 1000


def test_rivals_are_drawn_into_a_folder_that_score_does_not_wait_for():
    params = load_params()
    for model in (*params.rivals.methods, "temperatures"):
        for s in plan_sets(params, model):
            assert s.directory.parts[:2] == ("data", "rivals")
    drawn = {s.config.temperature for s in plan_sets(params, "temperatures")}
    assert drawn == set(params.rivals.temperatures)


def test_images_of_a_post_trained_tokenizer_come_from_the_base_generator_and_that_tokenizer():
    s = plan_sets(load_params(), "tokenizer")[0]
    assert s.generator.parts == ("data", "generator") and s.tokenizer.parts[:3] == ("data", "aligned", "tokenizer")
    assert s.trained == s.tokenizer


def test_the_table_waits_for_all_methods_and_seeds_and_the_experiment_for_no_rival():
    from dvc.repo import Repo

    params = load_params()
    graph = Repo(str(ROOT)).index.graph  # from a stage to what it builds on
    stages = {stage.addressing: stage for stage in graph}

    def needed(stage: str) -> set[str]:
        return {stage.addressing for stage in networkx.descendants(graph, stages[stage])}

    of_table, of_report = needed("rivals"), needed("report")
    seeds = params.align.seeds
    assert {f"align@{method}-{seed}" for method in params.align.methods for seed in seeds} <= of_table
    assert {f"rival-align@{method}-{seed}" for method in params.rivals.methods for seed in seeds} <= of_table
    assert {"sample-base", "score", "rival-temperatures", "rival-score"} <= of_table
    assert {*params.align.methods, *params.rivals.methods} == {"va-pi", "cross-entropy", "ste", "tokenizer", "ar-grpo"}
    assert not [name for name in of_report if name.startswith("rival")]


def test_the_way_of_a_method_starts_at_the_base_and_ends_where_the_method_does():
    params = load_params()
    final = table().query("guidance_scale == 1.0")
    first = params.align.seeds[0]
    final["seed"] += first
    kept = final.query("model == 'va-pi'").assign(steps=20, recall=0.65)
    way = ways(pd.concat([final, kept]), params).query("model == 'va-pi'")
    assert list(way["steps"]) == [0, 20, params.align.steps] and set(way["seed"]) == {first}
    assert way["precision"].iloc[0] == BASE_PRECISION[1.0] and way["recall"].iloc[1] == 0.65


def test_weights_are_kept_at_even_steps_before_the_last_and_under_a_budget_of_seconds_never():
    align = load_params().align
    assert align.model_copy(update={"steps": 60, "keep_every": 20}).kept_steps() == [20, 40]
    assert align.model_copy(update={"keep_every": 0}).kept_steps() == []
    assert align.model_copy(update={"budget": 30.0}).kept_steps() == []


def test_sets_of_kept_weights_are_named_by_method_and_steps():
    params = load_params()
    sets = plan_sets(params, "steps")
    assert len({s.directory for s in sets}) == len(sets) == 5 * len(params.align.kept_steps())
    tokenizer = next(s for s in sets if s.model == "tokenizer")
    assert tokenizer.tokenizer.parts[-2] == "steps" and tokenizer.trained.parts[-2:] == (
        "tokenizer",
        str(tokenizer.seed),
    )
