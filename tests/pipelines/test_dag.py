"""One real run of the whole DAG, in a tiny form, as a user would run it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


def tiny(params):
    """The default profile, small enough for a test: every stage runs for real, none long."""
    params["profile"] = "tiny"
    params["subset"]["splits"] = {"train": 120, "scorer": 60, "heldout": 60}
    for role in params["classifiers"].values():
        role["epochs"] = 1
    params["tokenizer"]["training"] |= {"steps": 4, "warmup_steps": 1, "batch_size": 16, "checkpoint_every": 2}
    params["tokenizer"]["unquantized_steps"] = 2
    params["generator"] |= {"dim": 32, "layers": 2}
    params["generator"]["training"] |= {"steps": 4, "warmup_steps": 1, "batch_size": 16, "checkpoint_every": 2}
    params["align"] |= {"seeds": [0], "steps": 3, "batch_size": 8, "group_size": 4, "log_kl_every": 2}
    params["sample"] |= {"count": 40, "batch_size": 20, "control_temperatures": [0.8]}
    params["score"] |= {"input_size": 64, "is_splits": 2}
    return params


class Checkout:
    """A copy of the repository with its own git and DVC, and what a user types in it."""

    def __init__(self, path: Path):
        self.path = path
        for name in (".dvc/config", "dvc.yaml", ".dvcignore", ".gitignore", "params.yaml"):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, path / name)
        ignore = shutil.ignore_patterns("__pycache__")
        for name in ("pipelines", "vapi_core"):
            shutil.copytree(ROOT / name, path / name, ignore=ignore)
        self.set_params(tiny)
        self.run("git", "init", "--quiet")

    def run(self, *command: str) -> subprocess.CompletedProcess:
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "MLFLOW_TRACKING_URI": f"sqlite:///{self.path}/mlflow.db",
            "DVC_NO_ANALYTICS": "1",
        }
        return subprocess.run(command, cwd=self.path, env=environment, capture_output=True, text=True, check=False)

    def set_params(self, change) -> None:
        path = self.path / "params.yaml"
        path.write_text(yaml.safe_dump(change(yaml.safe_load(path.read_text())), sort_keys=False))

    def lock(self) -> dict:
        return yaml.safe_load((self.path / "dvc.lock").read_text())["stages"]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    checkout = Checkout(tmp_path_factory.mktemp("checkout"))
    result = checkout.run("dvc", "repro")
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
    result = checkout.run("dvc", "repro")
    assert "Running stage" not in result.stdout
    assert checkout.lock() == before


def test_a_forced_rerun_of_the_alignment_gives_the_same_bytes(checkout):
    def outputs():
        return [o["md5"] for o in checkout.lock()["align@va-pi-0"]["outs"] if o["path"].startswith("data/")]

    before = outputs()
    assert checkout.run("dvc", "repro", "--force", "--single-item", "align@va-pi-0").returncode == 0
    assert outputs() == before


def test_a_change_of_the_alignment_re_runs_nothing_before_it(checkout):
    kept = (checkout.path / "params.yaml").read_text()
    checkout.set_params(lambda params: params | {"align": params["align"] | {"noise_ratio": 0.25}})
    changed = json.loads(checkout.run("dvc", "status", "--json").stdout)
    (checkout.path / "params.yaml").write_text(kept)
    assert set(changed) == {"align@va-pi-0", "align@cross-entropy-0", "report"}  # and all that build on these


def test_a_wrong_parameter_stops_a_stage_with_one_message(checkout):
    kept = (checkout.path / "params.yaml").read_text()
    checkout.set_params(lambda params: params | {"align": params["align"] | {"noise_ratio": 1.5}})
    result = checkout.run("python", "-m", "pipelines.stages.align", "--method", "va-pi", "--seed", "0")
    (checkout.path / "params.yaml").write_text(kept)
    assert result.returncode == 1
    assert result.stderr.startswith("error: align.noise_ratio: ") and "Traceback" not in result.stderr


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
