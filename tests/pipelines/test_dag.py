"""One real run of the whole DAG, in a tiny form, as a user would run it."""

import copy
import json
import shutil
import signal

import numpy as np
import pandas as pd
import pytest
import yaml

from pipelines.variants import sweep
from tests.checkout import ROOT, Checkout


def tiny(params):
    """The default profile, small enough for a test: every stage runs for real, none long."""
    params["profile"] = "tiny"
    params["threads"] = 1  # other tests use the other core
    params["subset"]["splits"] = {"train": 120, "scorer": 60, "heldout": 60}
    for role in params["classifiers"].values():
        role["epochs"] = 1
    params["tokenizer"]["training"] |= {"steps": 4, "warmup_steps": 1, "batch_size": 16, "checkpoint_every": 2}
    params["tokenizer"]["unquantized_steps"] = 2
    params["generator"] |= {"dim": 32, "layers": 2}
    params["generator"]["training"] |= {"steps": 4, "warmup_steps": 1, "batch_size": 16, "checkpoint_every": 2}
    params["align"] |= {"seeds": [0], "steps": 3, "batch_size": 8, "group_size": 4, "log_kl_every": 2, "keep_every": 2}
    params["align"]["checkpoint_every"] = 1
    params["sample"] |= {"count": 40, "batch_size": 20, "control_temperatures": [0.8]}
    params["score"] |= {"input_size": 64, "is_splits": 2}
    params["rivals"] = {"methods": ["tokenizer"], "temperatures": [0.9]}
    params["ablations"] = {
        "noise_ratios": [params["align"]["noise_ratio"]],
        "regularizers": ["kl"],
        "regularizer_weights": [0.1],
        "objectives": ["prior"],
    }
    return params


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    checkout = Checkout(tmp_path_factory.mktemp("checkout"))
    checkout.set_params(tiny)
    result = checkout.run("dvc", "repro", "report")
    assert result.returncode == 0, result.stdout + result.stderr
    return checkout


def test_the_report_and_its_figures_are_there(checkout):
    report = (checkout.path / "reports/report.md").read_text()
    assert "va-pi" in report and "cross-entropy" in report and "scorer-classifier" in report
    for figure in ("samples", "curves", "precision-recall", "reconstructions"):
        assert f"figures/{figure}.png" in report
        assert (checkout.path / f"reports/figures/{figure}.png").stat().st_size > 1000


def test_every_set_is_scored_by_every_extractor(checkout):
    metrics = json.loads((checkout.path / "reports/metrics.json").read_text())
    settings = {
        f"{model} T=1.0 g={guidance}" for model in ("base", "va-pi", "cross-entropy") for guidance in (1.0, 1.5)
    } | {"base T=0.8 g=1.0"}
    assert set(metrics) == {"efficientnet-lite0", "scorer-classifier"}
    for scores in metrics.values():
        assert set(scores) == settings
        assert all(score["fid"] > 0 for score in scores.values())


def test_every_alignment_is_one_finished_mlflow_run_with_curves_and_scores(checkout):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{checkout.path}/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    runs = client.search_runs([experiment.experiment_id], max_results=100)
    keys = [run.data.tags["dvc.key"] for run in runs]
    assert len(keys) == len(set(keys))
    assert {run.info.status for run in runs} == {"FINISHED"}
    by_name = {run.info.run_name: run for run in runs}
    stages = {name for name in checkout.lock() if not name.startswith("_")}
    assert set(by_name) == stages | {"pipeline"}
    aligned = by_name["align@va-pi-0"]
    assert aligned.data.params["noise_ratio"] == str(
        yaml.safe_load((ROOT / "params.yaml").read_text())["align"]["noise_ratio"]
    )
    assert len(client.get_metric_history(aligned.info.run_id, "train/reward")) == 3
    assert "score/fid scorer-classifier" in aligned.data.metrics
    assert "score/fid scorer-classifier T0.8 g1.0" in by_name["generator"].data.metrics
    assert by_name["tokenizer"].data.tags["mlflow.parentRunId"] == by_name["pipeline"].info.run_id


def test_a_second_repro_runs_nothing(checkout):
    before = checkout.lock()
    result = checkout.run("dvc", "repro", "report")
    assert "Running stage" not in result.stdout
    assert checkout.lock() == before


def test_a_forced_rerun_of_the_alignment_gives_the_same_bytes(checkout):
    def outputs():
        return [o["md5"] for o in checkout.lock()["align@va-pi-0"]["outs"] if o["path"].startswith("data/")]

    before = outputs()
    assert checkout.run("dvc", "repro", "--force", "--single-item", "align@va-pi-0").returncode == 0
    assert outputs() == before
    result = checkout.run("dvc", "repro", "report")  # which tells the seconds of the run that is the last one
    assert [line for line in result.stdout.splitlines() if line.startswith("Running")] == ["Running stage 'report':"]


def test_a_change_of_the_alignment_re_runs_nothing_before_it(checkout):
    kept = (checkout.path / "params.yaml").read_text()
    checkout.set_params(lambda params: params | {"align": params["align"] | {"noise_ratio": 0.25}})
    changed = json.loads(checkout.run("dvc", "status", "--json", "--with-deps", "report").stdout)
    (checkout.path / "params.yaml").write_text(kept)
    assert set(changed) == {"align@va-pi-0", "align@cross-entropy-0", "report"}  # and all that build on these


def test_a_wrong_parameter_stops_a_stage_with_one_message(checkout):
    kept = (checkout.path / "params.yaml").read_text()
    checkout.set_params(lambda params: params | {"align": params["align"] | {"noise_ratio": 1.5}})
    result = checkout.run("python", "-m", "pipelines.stages.align", "--method", "va-pi", "--seed", "0")
    (checkout.path / "params.yaml").write_text(kept)
    assert result.returncode == 1
    assert result.stderr.startswith("error: align.noise_ratio: ") and "Traceback" not in result.stderr


def test_a_misspelt_method_is_no_alignment(checkout):
    result = checkout.run("python", "-m", "pipelines.stages.align", "--method", "vapi", "--seed", "0")
    assert result.returncode == 2 and "va-pi" in result.stderr
    assert not (checkout.path / "data/aligned/vapi").exists()


def test_a_damaged_input_is_named_with_the_command_that_makes_it_anew(checkout):
    weights = checkout.path / "data/generator/generator.safetensors"
    kept = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(kept[:-100])
    result = checkout.run("python", "-m", "pipelines.stages.align", "--method", "va-pi", "--seed", "0")
    weights.write_bytes(kept)
    assert result.returncode == 1
    assert "generator.safetensors" in result.stderr and "dvc repro" in result.stderr
    assert "Traceback" not in result.stderr


def launched(checkout, path, **launch):
    """A copy of the checkout with another `launch`."""
    shutil.copytree(checkout.path, path, ignore=shutil.ignore_patterns(".dvc"))
    copied = copy.copy(checkout)
    copied.path = path
    copied.set_params(lambda params: params | {"launch": params["launch"] | launch})
    return copied


@pytest.fixture
def copied(checkout, tmp_path):
    """A copy of the checkout, without DVC."""
    shutil.copytree(checkout.path, tmp_path / "copy", ignore=shutil.ignore_patterns(".dvc"))
    copied = copy.copy(checkout)
    copied.path = tmp_path / "copy"
    return copied


# the stage `align`, which tells its steps and is killed, as if from outside, in the middle of one of them
ALIGN = """
import os, runpy, signal, sys
from vapi_core.alignment.va_pi import VaPi
objective, last = VaPi.__call__, sys.argv.pop(1)
def watched(self, batch):
    print("step", batch.step, flush=True)
    if str(batch.step) == last:
        os.kill(os.getpid(), signal.SIGKILL)
    return objective(self, batch)
VaPi.__call__ = watched
runpy.run_module("pipelines.stages.align", run_name="__main__")
"""


def test_a_killed_alignment_goes_on_from_its_checkpoint_to_the_same_bytes(checkout, copied):
    from mlflow.tracking import MlflowClient

    output, curves = "data/aligned/va-pi/0", "reports/curves/align@va-pi-0.csv"
    shutil.rmtree(copied.path / output)  # as DVC does before a stage runs
    (copied.path / curves).unlink()
    counting = "step 0"  # the operations of an image are counted first
    killed = copied.run("python", "-c", ALIGN, "2", "--method", "va-pi", "--seed", "0")
    assert killed.returncode == -signal.SIGKILL and not (copied.path / output).exists()
    assert killed.stdout.split("\n")[:-1] == [counting, "step 0", "step 1", "step 2"]
    resumed = copied.run("python", "-c", ALIGN, "never", "--method", "va-pi", "--seed", "0")
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.split("\n")[:-1] == [counting, "step 2"]
    files = [path.relative_to(checkout.path) for path in (checkout.path / output).rglob("*") if path.is_file()]
    assert {file.name for file in files} == {"generator.safetensors", "generator.json", "run.json"}
    for file in (*files, curves):
        assert (copied.path / file).read_bytes() == (checkout.path / file).read_bytes(), file
    assert not list((copied.path / ".work/checkpoints").iterdir())
    client = MlflowClient(f"sqlite:///{copied.path}/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    runs = client.search_runs([experiment.experiment_id], filter_string="attributes.run_name = 'align@va-pi-0'")
    assert [run.info.status for run in runs] == ["FINISHED"]
    assert [m.step for m in client.get_metric_history(runs[0].info.run_id, "train/reward")] == [1, 2, 3]


@pytest.fixture
def parallel(checkout, tmp_path):
    """A copy of the checkout in which stages run as two processes."""
    return launched(checkout, tmp_path / "parallel", processes=2)


def test_on_two_processes_a_stage_starts_torchrun_comes_to_the_same_and_is_one_mlflow_run(checkout, parallel):
    from mlflow.tracking import MlflowClient
    from safetensors.numpy import load_file

    for stage in (("align", "--method", "va-pi", "--seed", "0"), ("sample", "--model", "base")):
        result = parallel.run("python", "-m", f"pipelines.stages.{stage[0]}", *stage[1:])
        assert result.returncode == 0, result.stdout + result.stderr
    alone, together = (load_file(c.path / "data/aligned/va-pi/0/generator.safetensors") for c in (checkout, parallel))
    assert all(np.abs(together[name] - weights).max() < 1e-5 for name, weights in alone.items())
    assert any((together[name] != weights).any() for name, weights in alone.items())  # a run of its own
    alone, together = (
        np.load(c.path / "data/samples/base/t1.0-g1.5-0/images.npy").astype(int) for c in (checkout, parallel)
    )
    same = np.abs(together - alone).max((1, 2, 3)) <= 1
    assert same.mean() > 0.9  # rounding, of another number of threads too, can turn a token of an image
    client = MlflowClient(f"sqlite:///{parallel.path}/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    runs = client.search_runs([experiment.experiment_id], max_results=100)
    names = [run.info.run_name for run in runs]
    assert names.count("align@va-pi-0") == names.count("sample-base") == 1
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_an_error_of_all_processes_is_told_once(parallel):
    (parallel.path / "data/classifiers/reward/classifier.safetensors").unlink()
    result = parallel.run("python", "-m", "pipelines.stages.align", "--method", "va-pi", "--seed", "0")
    assert result.returncode == 1
    assert result.stderr.count("error: ") == 1 and "classifier.safetensors" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_table_of_rivals_runs_only_what_it_lacks_and_leaves_the_experiment_up_to_date(checkout):
    result = checkout.run("dvc", "repro", "rivals")
    assert result.returncode == 0, result.stdout + result.stderr
    running = {line.split("'")[1] for line in result.stdout.splitlines() if line.startswith("Running stage")}
    assert running == {
        "rival-align@tokenizer-0",
        "rival-sample@tokenizer",
        "rival-temperatures",
        "rival-steps",
        "rival-score",
        "rivals",
    }
    report = (checkout.path / "reports/rivals.md").read_text()
    assert "VA-π" in report and "| tokenizer | 1.0 | 1.5 | 40 | 1 |" in report
    assert (checkout.path / "reports/rivals/figures/densities.png").stat().st_size > 1000
    assert (
        json.loads((checkout.path / "reports/rivals/stages/align@tokenizer-0.json").read_text())["flops_per_image"] > 0
    )
    assert "Running stage" not in checkout.run("dvc", "repro", "report").stdout


def test_an_ablation_table_runs_its_own_cells_and_needs_nothing_of_the_experiment_after_the_generator(checkout):
    result = checkout.run("dvc", "repro", "ablation-reward")
    assert result.returncode == 0, result.stdout + result.stderr
    running = {line.split("'")[1] for line in result.stdout.splitlines() if line.startswith("Running stage")}
    assert running == {"cell@0", "cell-base@0", "ablation-reward-cell@prior-0", "ablation-reward"}
    report = (checkout.path / "reports/ablations/reward.md").read_text()
    assert "| prior only | 14.17 | 88.78 |" in report and "40 images" in report
    for picture in ("reward.png", "reward-samples.png"):
        assert (checkout.path / "reports/ablations" / picture).stat().st_size > 1000
    metrics = json.loads((checkout.path / "reports/ablations/stages/cell@0.json").read_text())
    assert metrics["score/fid scorer-classifier"] > 0
    assert "Running stage" not in checkout.run("dvc", "repro", "report", "ablation-reward").stdout


def test_a_cell_has_the_scores_that_the_experiment_has_of_the_same_alignment_and_seed(checkout):
    assert checkout.run("dvc", "repro", "cell", "cell-base").returncode == 0
    scores = pd.read_csv(checkout.path / "reports/scores/scores.csv")
    for model in ("va-pi", "base"):
        drawn = scores[(scores["model"] == model) & (scores["temperature"] == 1) & (scores["guidance_scale"] == 1)]
        cell = pd.read_csv(checkout.path / f"data/ablations/{model}/0/scores.csv")
        pd.testing.assert_frame_equal(drawn[cell.columns].reset_index(drop=True), cell)


def test_a_cell_trains_as_the_experiment_does_under_bfloat16_too(checkout, tmp_path):
    halved = launched(checkout, tmp_path / "bfloat16", dtype="bfloat16")
    for stage in (("align", "--method", "va-pi", "--seed", "0"), ("cell", "--seed", "0")):
        result = halved.run("python", "-m", f"pipelines.stages.{stage[0]}", *stage[1:])
        assert result.returncode == 0, result.stdout + result.stderr
    curves = (halved.path / "reports/ablations/curves/cell@0.csv").read_text()
    assert curves == (halved.path / "reports/curves/align@va-pi-0.csv").read_text()
    assert curves != (checkout.path / "reports/curves/align@va-pi-0.csv").read_text()


def test_a_cell_that_is_the_one_of_params_yaml_is_copied_not_trained_again(checkout):
    result = checkout.run("dvc", "repro", "ablation-noise")
    assert result.returncode == 0, result.stdout + result.stderr
    (cell,) = (checkout.path / "data/ablations/noise").glob("*/0")
    whole = checkout.path / "data/ablations/va-pi/0"
    assert (cell / "scores.csv").read_text() == (whole / "scores.csv").read_text()
    (metrics,) = (checkout.path / "reports/ablations/stages").glob("ablation-noise-cell@*.json")
    assert "images_per_second" not in json.loads(metrics.read_text())  # nothing was trained
    assert (checkout.path / "reports/ablations/noise.md").is_file()


def test_a_cell_of_a_sweep_is_an_experiment_that_takes_its_upstream_from_the_cache_and_keeps_its_scores(checkout):
    for command in (
        ("add", "-A"),
        ("-c", "user.name=tiny", "-c", "user.email=tiny@example.com", "commit", "-qm", "run"),
    ):
        assert checkout.run("git", *command).returncode == 0
    form = sweep.opening_form(noise_ratios=[0.9], seeds=[0], steps=2)
    (cell,) = sweep.plan_cells(form, sweep.read_baseline(None, checkout.path))
    result = checkout.run(*sweep.command(cell))
    assert result.returncode == 0, result.stdout + result.stderr
    assert [line for line in result.stdout.splitlines() if line.startswith("Running stage")] == [
        "Running stage 'cell@0':"
    ]
    scores = sweep.read_scores(cell.name, form.seeds, checkout.path)
    assert scores["score/fid scorer-classifier"][0] > 0
