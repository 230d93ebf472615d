"""Scores go to the MLflow run of each seed, and their means to the stage."""

import math
from pathlib import Path

import pandas as pd
import pytest

from pipelines.config.loading import check_params
from pipelines.config.paths import ALIGNED, GENERATOR
from pipelines.config.variant import find_variant
from pipelines.stages import score
from pipelines.tracking import runs
from pipelines.variants import run_scores
from pipelines.variants.run_scores import header_of, metrics_of, report_scores
from tests.pipelines.variants.workplace import stage_of, tiny_content
from vapi_core.files import write_json

CELL = "ξ 0.5 · β 0.1 · ce · mse"  # of va-pi in these params


@pytest.fixture
def params(tmp_path, monkeypatch):
    """A folder in which a base and two seeds of va-pi were made."""
    monkeypatch.chdir(tmp_path)
    content = tiny_content()
    content["align"]["seeds"] = [4, 5]
    write_json(GENERATOR / "run.json", {"key": "g", "stage": "generator", "experiment": "mnist"})
    for seed in (4, 5):
        folder = ALIGNED / "va-pi" / str(seed)
        write_json(folder / "run.json", {"key": f"key of {seed}", "stage": "align@va-pi", "experiment": "mnist"})
        write_json(folder / "generator.json", {"sha256": str(seed)})
    return check_params(content)


def rows(variant: str, fids: dict[int, float]) -> pd.DataFrame:
    """Scores of each seed at both guidance scales, one set on its way, and one against another reference."""
    found = []
    for seed, fid in fids.items():
        for guidance in (1.0, 2.0):
            found.append({"seed": seed, "guidance_scale": guidance, "fid": fid + guidance, "reference": "heldout"})
        found.append({"seed": seed, "guidance_scale": 1.0, "fid": 999.0, "reference": "heldout", "steps": 2})
        found.append({"seed": seed, "guidance_scale": 1.0, "fid": 888.0, "reference": "train"})
    same = {"variant": variant, "temperature": 1.0, "extractor": "scorer-classifier"}
    return pd.DataFrame([{"steps": math.nan, **row, **same} for row in found])


@pytest.fixture
def added(monkeypatch):
    given = []
    monkeypatch.setattr(run_scores, "add_scores", lambda *arguments, images: given.append((*arguments, images)))
    return given


def test_the_run_of_each_seed_gets_its_own_scores_and_the_stage_their_means(params, added):
    stage = stage_of(score, params, variant="va-pi")
    report_scores(stage, find_variant(params, "va-pi"), rows("va-pi", {4: 10.0, 5: 20.0}), None)
    ((scores, headers, outputs, _),) = added
    plain, guided = "score/fid/scorer", "score/fid/scorer/T1.0-g2.0"
    assert scores == {"key of 4": {plain: 11.0, guided: 12.0}, "key of 5": {plain: 21.0, guided: 22.0}}
    assert stage.metrics == {plain: 16.0}  # what `dvc metrics show` prints
    assert outputs["key of 4"] != outputs["key of 5"]
    assert {key: header.name for key, header in headers.items()} == {
        f"key of {n}": f"va-pi · {CELL} · seed {n}" for n in (4, 5)
    }


def test_the_run_of_each_seed_gets_the_pictures_of_its_own_sets_at_the_steps_they_were_drawn_after(params, added):
    variant = find_variant(params, "va-pi")
    for image_set in variant.sets:
        (image_set.directory).mkdir(parents=True)
        (image_set.directory / "grid.png").write_bytes(b"picture")
    report_scores(stage_of(score, params, variant="va-pi"), variant, rows("va-pi", {4: 10.0, 5: 20.0}), None)
    pictures = {key: [(name, step) for name, _, step in told] for key, told in added[0][3].items()}
    whole = [("samples", 6), ("samples T1.0-g2.0", 6)]
    assert pictures == {"key of 4": [*whole, ("samples", 2), ("samples", 4)], "key of 5": whole}


def test_a_run_that_is_lost_is_made_anew_under_the_name_and_tags_that_it_had(params):
    header = header_of(params, find_variant(params, "va-pi"), 4)
    assert (header.experiment, header.name, header.key) == ("mnist", f"va-pi · {CELL} · seed 4", "key of 4")
    tags = {"stage": "align", "variant": "va-pi", "table": "experiment", "profile": "mnist", "ablation": "cell"}
    assert header.tags == tags


def test_a_control_gets_one_run_a_seed_which_is_the_same_each_time(params):
    base = find_variant(params, "base")
    headers = [header_of(params, base, seed) for seed in (4, 5)]
    assert [header.name for header in headers] == ["base · seed 4", "base · seed 5"] and headers[0].key != headers[
        1
    ].key
    assert headers[0].tags["stage"] == "control" and headers[0].params["seed"] == "4"
    assert header_of(params, base, 4).key == headers[0].key


def test_genevals_overall_score_is_one_of_them(params, added):
    geneval = {
        "variant": "va-pi",
        "temperature": 1.0,
        "guidance_scale": 1.0,
        "prompt": 0,
        "task": "colors",
        "images": 4,
    }
    judged = pd.DataFrame([geneval | {"seed": seed, "correct": seed - 3} for seed in (4, 5)])
    stage = stage_of(score, params, variant="va-pi")
    report_scores(stage, find_variant(params, "va-pi"), rows("va-pi", {4: 10.0, 5: 20.0}), judged)
    assert stage.metrics["score/overall/geneval"] == pytest.approx((1 / 4 + 2 / 4) / 2)


def test_a_score_that_an_extractor_does_not_have_is_no_metric(params):
    table = rows("va-pi", {4: 10.0}).assign(accuracy=math.nan)
    metrics = metrics_of(
        table[table["steps"].isna() & (table["reference"] == "heldout")], find_variant(params, "va-pi")
    )
    assert set(metrics) == {"score/fid/scorer", "score/fid/scorer/T1.0-g2.0"}


def test_scores_are_kept_where_mlflow_is_away(params, monkeypatch, capsys):
    def away():
        raise ConnectionError("nobody there")

    monkeypatch.setattr(runs, "connect", away)
    stage = stage_of(score, params, variant="va-pi")
    report_scores(stage, find_variant(params, "va-pi"), rows("va-pi", {4: 10.0, 5: 20.0}), None)
    assert "To send the scores later" in capsys.readouterr().err
    assert len(list(Path(".work/tracking").iterdir())) == 2 and stage.metrics
