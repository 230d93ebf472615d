"""A sweep's grid is the same whether DVC's experiments or MLflow's runs are asked, and MLflow holds it as one run."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from pipelines.config.profiles import read_profile
from pipelines.reporting import grid as results
from pipelines.reporting import grid_figures
from pipelines.tracking import mlflow_runs

ROOT = Path(__file__).parents[3]
# the stages of a variant without their work: it reports to DVC and MLflow as the real ones do
VARIANT = """
import json, sys
from pathlib import Path
import pandas as pd
from pipelines.tracking.runs import Header, add_scores, now, stage_run
from pipelines.config.loading import load_params
from pipelines.variants.training import described
from pipelines.config.variant import find_variant
params = load_params()
variant = find_variant(params, sys.argv[1])
alignment = variant.alignment
if alignment.config.noise_ratio > 0.9:
    sys.exit("this cell fails")
rows = []
for seed in variant.seeds:
    key, fid = f"{variant.name} {seed}", 1 / 3 + alignment.config.noise_ratio + seed
    settings = alignment.settings | described(alignment) | {"seed": seed}
    tags = {"stage": "align", "variant": variant.name}
    with stage_run(experiment="tiny", name=f"{variant.name}@{seed}", key=key, params=settings, tags=tags) as run:
        run.log({"stage/seconds": 1.0})
        run.made("the same")
    add_scores({key: {"score/fid/scorer": fid}}, {}, {key: "the same"})
    variant.output(seed).mkdir(parents=True)
    (variant.output(seed) / "run.json").write_text(json.dumps({"key": key}))
    set_ = {"variant": variant.name, "steps": None, "seed": seed, "temperature": 1.0, "guidance_scale": 1.0}
    rows.append({**set_, "extractor": "scorer-classifier", "reference": params.score.references[0], "fid": fid})
variant.scores.mkdir(parents=True)
pd.DataFrame(rows).to_csv(variant.scores / "scores.csv", index=False, float_format="%.6g")
"""
OLD = "noise0_7-ce0_1-mse_perceptual"


def variant(**changes):
    return {"table": "sweep", "method": "va-pi", "align": changes, "guidance_scales": [1.0]}


PARAMS = read_profile("mnist", ROOT) | {"profile": "tiny", "tables": [], "variants": {OLD: variant(noise_ratio=0.7)}}
PARAMS["align"] |= {"seeds": [0, 1], "noise_ratio": 0.0, "keep_every": 0}
STAGES = {
    "score": {
        "foreach": "${variants}",
        "do": {
            "cmd": "python variant.py ${key}",
            "params": ["align", "variants.${key}"],
            "outs": ["data/aligned/${key}"],
            "plots": [{"reports/scores/${item.table}/${key}": {"cache": False}}],
        },
    },
    "other": {"cmd": "echo something else > other", "outs": [{"other": {"cache": False}}]},
}
HALF, KL, FAILS = "noise0_5-ce0_1-mse_perceptual", "noise0-kl0_1-mse", "noise0_95-ce0_1-mse_perceptual"
CHANGES = {
    HALF: "{noise_ratio: 0.5}",
    KL: "{regularizer: kl, reward: {perceptual: 0.0}}",
    FAILS: "{noise_ratio: 0.95}",
}


def cell(name, revision="00000000"):
    """Name of the experiment of a variant."""
    return f"{name}-{revision}"


def run_cell(name, revision="00000000"):
    added = f"+variants.{name}={{table: sweep, method: va-pi, align: {CHANGES[name]}, guidance_scales: [1.0]}}"
    return run_experiment(cell(name, revision), added, f"score@{name}")


def run_experiment(name, change, target):
    command = ["dvc", "exp", "run", "--temp", "--name", name, "--set-param", change, target]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def commit(message):
    subprocess.run(["git", "add", "-A"], check=True)
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", message], check=True)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A repository in which a sweep of three cells was run, one of which failed."""
    folder, kept = tmp_path_factory.mktemp("sweep"), (Path.cwd(), dict(os.environ))
    (folder / "variant.py").write_text(VARIANT)
    (folder / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": STAGES}))
    (folder / ".gitignore").write_text("/mlflow.db\n/.work/\n/data/\n")
    os.chdir(folder)
    os.environ |= {
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "DVC_NO_ANALYTICS": "1",
    }
    try:
        subprocess.run(["git", "init", "-q"], check=True)
        subprocess.run(["dvc", "init", "-q"], check=True)
        subprocess.run(["dvc", "repro", "-q", "score"], check=True)  # git has the scores of another cell from before
        commit("first")
        assert [run_cell(name).returncode for name in CHANGES] == [0, 0, 255]
        assert run_experiment("no-cell", "align.noise_ratio=0.7", "other").returncode == 0
        yield folder
    finally:
        os.chdir(kept[0])
        os.environ.clear()
        os.environ.update(kept[1])


def test_dvc_and_mlflow_tell_the_same_grid(sweep):
    grid = results.from_dvc()
    assert grid[["experiment", "noise_ratio", "regularizer", "reward", "seed"]].values.tolist() == [
        [cell(KL), 0.0, "kl", "mse", 0],
        [cell(KL), 0.0, "kl", "mse", 1],
        [cell(HALF), 0.5, "ce", "mse+perceptual", 0],
        [cell(HALF), 0.5, "ce", "mse+perceptual", 1],
    ]
    assert grid["fid/scorer"].tolist() == [0.333333, 1.33333, 0.833333, 1.83333]
    pd.testing.assert_frame_equal(results.from_mlflow("tiny"), grid)
    pd.testing.assert_frame_equal(results.from_mlflow("tiny", [cell(HALF)]), results.from_dvc([cell(HALF)]))


def test_a_reader_that_has_enough_ends_the_command_quietly(sweep):
    command = [sys.executable, "-m", "pipelines.cli", "results"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141  # what a shell tells of a process that SIGPIPE ended


def test_a_sweep_is_one_run_with_its_grid_and_figures_and_its_cells_below_it(sweep):
    for _ in range(2):  # publishing again replaces the run
        results.publish("sweep-1", "tiny", {"noise_ratios": [0.0, 0.5]}, map(cell, CHANGES))
    client = mlflow_runs.connect()
    (parent,) = mlflow_runs.find_runs("tiny", "tags.stage = 'sweep'")
    assert parent.data.params["noise_ratios"] == "[0.0, 0.5]" and parent.data.metrics["finished_cells"] == 2
    artifacts = {file.path for file in client.list_artifacts(parent.info.run_id)}
    pictures = {"answer.png", "over-noise_ratio.png", "reward-by-regularizer.png"}
    assert {"grid.json", "grid.csv", *pictures} <= artifacts
    cells = mlflow_runs.find_runs("tiny", "tags.`member.sweep-1` != ''")
    assert {run.data.tags["mlflow.parentRunId"] for run in cells} == {parent.info.run_id} and len(cells) == 4


def test_a_cell_that_dvc_takes_from_its_cache_has_the_run_that_made_it(sweep):
    (sweep / "notes.md").write_text("another commit, the same code\n")
    commit("second")
    again = cell(HALF, "11111111")
    assert "is cached" in run_cell(HALF, "11111111").stdout
    assert results.from_mlflow("tiny", [again]).empty
    results.publish("sweep-2", "tiny", {"noise_ratios": [0.5]}, [again])
    grid = results.from_mlflow("tiny", [again])
    assert len(grid) == 2
    pd.testing.assert_frame_equal(grid, results.from_dvc([again]))
    (parent,) = mlflow_runs.find_runs("tiny", "tags.stage = 'sweep' and attributes.run_name = 'sweep-2'")
    cells = mlflow_runs.find_runs("tiny", "tags.`member.sweep-2` != ''")
    assert {run.data.tags["member.sweep-2"] for run in cells} == {parent.info.run_id} and len(cells) == 2


def grid():
    rows = [
        (noise, kind, weight, "mse", "image", seed, noise + weight + seed)
        for noise in (0.0, 0.5)
        for kind in ("ce", "kl")
        for weight in (0.1, 1.0)
        for seed in (0, 2)
    ]
    return pd.DataFrame(rows, columns=[*results.AXES, "seed", "fid/a"])


def test_there_is_a_line_for_each_combination_of_the_other_axes_with_its_error_over_seeds():
    lines = grid_figures.over_axis(grid(), "noise_ratio", "fid/a")
    assert set(lines) == {f"regularizer {kind}, β {weight}" for kind in ("ce", "kl") for weight in (0.1, 1.0)}
    line = lines["regularizer ce, β 0.1"]
    assert line["x"].tolist() == [0.0, 0.5] and line["y"].tolist() == pytest.approx([1.1, 1.6])
    assert np.allclose(line["error"], 1.0)


def test_a_heatmap_is_the_mean_over_all_else():
    plane = grid_figures.over_plane(grid(), "regularizer_weight", "noise_ratio", "fid/a")
    assert plane.loc[1.0, 0.5] == pytest.approx(2.5) and plane.shape == (2, 2)


def test_only_axes_that_vary_are_drawn(tmp_path):
    drawn = {path.name for path in grid_figures.draw(grid(), tmp_path, pd.DataFrame({"fid/a": [1.0]}))}
    assert drawn == {"over-noise_ratio.png", "over-regularizer_weight.png", "regularizer_weight-by-noise_ratio.png"}
    assert all((tmp_path / name).stat().st_size > 3000 for name in drawn)


def test_the_answer_names_the_best_cell_which_is_the_one_with_the_lowest_mean_of_fid(tmp_path):
    cells = grid().assign(experiment=lambda g: g["noise_ratio"].astype(str) + g["regularizer_weight"].astype(str))
    assert grid_figures.best_cell(cells, "fid/a") == "0.00.1"
    assert grid_figures.best_cell(cells.rename(columns={"fid/a": "accuracy/a"}), "accuracy/a") == "0.51.0"
    assert grid_figures.titled("fid/a") == "FID by a: lower is better"
    pictures = []
    for base in (pd.DataFrame(), pd.DataFrame({"fid/a": [1.0]})):
        grid_figures.draw_answer(tmp_path / "answer.png", cells, base, "a")
        pictures.append((tmp_path / "answer.png").read_bytes())
    assert pictures[0] != pictures[1]  # the base is a line


def test_a_sweep_tells_how_far_it_is_while_its_cells_run(sweep):
    with results.sweep_run("sweep-3", "tiny", {}, map(cell, CHANGES)) as tracked:
        tracked.update(2)
        tracked.update(2)  # nothing new
    (run,) = mlflow_runs.find_runs("tiny", "tags.stage = 'sweep' and attributes.run_name = 'sweep-3'")
    told = {name.removeprefix("sweep/"): value for name, value in run.data.metrics.items()}
    assert told["ended"] == 2 and told["cells"] == 3 and told["minutes_left"] == pytest.approx(told["minutes"] / 2)
    assert told["best/fid/scorer"] == pytest.approx(0.833333, rel=1e-5)
    images = mlflow_runs.connect().list_artifacts(run.info.run_id, "images")
    assert [file.path.split("+")[:3] for file in images if file.path.endswith(".png")] == [
        ["images/answer", "step", "0"]
    ]
