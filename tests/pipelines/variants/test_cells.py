"""What a cell came to is read from the commit of its experiment; what cannot be read is told with what mends it."""

import subprocess
from pathlib import Path

import pandas as pd
import pytest
import yaml

from pipelines.config.profiles import read_profile
from pipelines.repository.git import experiments
from pipelines.variants.cells import cells_of_head, read_cell, read_scores
from vapi_core.errors import FileError

ROOT = Path(__file__).parents[3]
VARIANT, CELL = "noise0_5-ce0_1-mse", "noise0_5-ce0_1-mse-00000000"
FOLDER = f"reports/scores/sweep/{VARIANT}"
ROW = {"variant": VARIANT, "steps": None, "temperature": 1.0, "guidance_scale": 1.0, "reference": "heldout"}


def params(profile="mnist", seeds=(0, 1)):
    content = read_profile(profile, ROOT)
    align = {"noise_ratio": 0.5, "reward": {"perceptual": 0.0}}
    content["variants"][VARIANT] = {"table": "sweep", "method": "va-pi", "align": align, "guidance_scales": [1.0]}
    content["align"]["seeds"] = list(seeds)
    return content


def scores(rows):
    return pd.DataFrame([{**ROW, "extractor": "scorer-classifier", **row} for row in rows]).to_csv(index=False)


def git(*arguments):
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout


def finish(name, files):
    """An experiment of this name that has these files, as DVC leaves it in git."""
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    head = git("rev-parse", "HEAD").strip()
    git("add", "-A")
    git("-c", "user.name=x", "-c", "user.email=x@y", "commit", "-qm", name)
    git("update-ref", f"refs/exps/{head[:2]}/{head[2:]}/{name}", "HEAD")
    git("reset", "-q", "--hard", head)


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """Finishes an experiment in a repository of one commit."""
    monkeypatch.chdir(tmp_path)
    git("init", "-q")
    git("-c", "user.name=x", "-c", "user.email=x@y", "commit", "-qm", "first", "--allow-empty")

    def experiment(name, table, content=None, judged=None):
        folder = tmp_path / FOLDER
        files = {folder / "scores.csv": table, folder / "geneval.csv": judged}
        files = {path: text for path, text in files.items() if text is not None}
        finish(name, {tmp_path / "params.yaml": yaml.safe_dump(content or params()), **files})

    return experiment


def test_a_cell_has_the_scores_of_each_seed_against_the_main_reference(finished):
    finished(
        CELL,
        scores(
            [
                {"seed": 0, "fid": 1.2345678, "accuracy": 0.5},
                {"seed": 0, "fid": 7.0, "reference": "train"},
                {"seed": 0, "fid": 9.0, "steps": 20},
                {"seed": 1, "fid": 2.5, "accuracy": 0.75},
            ]
        ),
    )
    cell = read_cell(CELL)
    assert cell.variant.name == VARIANT and cell.variant.alignment.config.noise_ratio == 0.5
    assert cell.scores == {
        0: {"score/fid/scorer": 1.23457, "score/accuracy/scorer": 0.5},
        1: {"score/fid/scorer": 2.5, "score/accuracy/scorer": 0.75},
    }
    assert read_scores(CELL)["score/fid/scorer"] == [1.23457, 2.5]


def test_of_text_to_image_a_cell_has_genevals_overall_score_too(finished):
    content = params("scenes", seeds=[0])
    table = scores([{"seed": 0, "fid": 1.5, "extractor": "efficientnet-lite0"}])
    judged = pd.DataFrame(
        [
            {**ROW, "seed": 0, "prompt": i, "task": task, "correct": correct, "images": 4}
            for i, (task, correct) in enumerate([("counting", 1), ("colors", 2), ("colors", 4)])
        ]
    )
    finished(CELL, table, content, judged.to_csv(index=False))
    assert read_scores(CELL) == {"score/fid/efficientnet-lite0": [1.5], "score/overall/geneval": [0.5]}


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("spoilt", "has no scores there that can be read"),
        ("", "has no scores there that can be read"),
        (None, "has no scores there that can be read"),  # missing
        (scores([{"seed": 0, "fid": 1.5}]), "lacks scores of seed 1"),
        (scores([{"seed": 0, "fid": 1.5}, {"seed": 1, "accuracy": 1.0}]), "lacks scores of seed 1"),
    ],
)
def test_scores_that_cannot_be_read_are_told_with_cell_file_and_remedy(finished, table, told):
    finished(CELL, table)
    with pytest.raises(FileError, match=rf"{FOLDER}/scores\.csv: experiment {CELL} {told}.*dvc exp remove {CELL}"):
        read_scores(CELL)


def test_params_that_cannot_be_read_are_told_too(finished):
    content = params()
    del content["variants"][VARIANT]
    finished(CELL, scores([]), content)
    with pytest.raises(FileError, match=f"params.yaml: experiment {CELL} .*dvc exp remove {CELL}"):
        read_scores(CELL)


def test_a_cell_that_was_not_run_is_told(finished):
    with pytest.raises(FileError, match=f"{CELL}: there is no such experiment"):
        read_scores(CELL)


def test_the_cells_of_head_are_those_that_build_on_it_and_no_other_experiment(finished):
    finished(CELL, scores([]))
    finished("noisy-mouse", scores([]))
    assert cells_of_head() == [CELL]
    git("-c", "user.name=x", "-c", "user.email=x@y", "commit", "-qm", "second", "--allow-empty")
    assert cells_of_head() == [] and set(experiments()) == {CELL, "noisy-mouse"}


def test_without_a_commit_there_are_no_cells_to_look_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    git("init", "-q")
    with pytest.raises(FileError, match="git has no commit here"):
        cells_of_head()
