"""One real run of the whole DAG, in a tiny form, as a user would run it."""

import copy
import hashlib
import json
import shutil
import signal
import socket
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import yaml

from pipelines.repository.git import experiments
from pipelines.variants import cells, sweep
from pipelines.variants.sweep_form import opening_form
from tests.checkout import ROOT, Checkout
from tests.slurm import free_ports, needs_slurm, slurm

VA_PI = "va-pi · ξ 0.5 · β 0.1 · ce · seed 0"  # in MLflow
EXTRACTORS = ("efficientnet-lite0", "uci-classifier", "scorer-classifier")


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
    params["sample"] |= {"count": 40, "batch_size": 20, "guidance_scales": [1.0, 1.5]}
    params["score"] |= {"extractors": list(EXTRACTORS), "input_size": 64, "is_splits": 2}
    params["controls"]["base"]["temperatures"] = [1.0, 0.8]
    del params["controls"]["guided"]
    params["controls"]["temperatures"]["temperatures"] = [0.9]
    kept = ("va-pi", "cross-entropy", "tokenizer-post-training", "noise-0_0", "only-prior")
    params["variants"] = {name: params["variants"][name] for name in kept}
    for variant in params["variants"].values():
        variant["align"].pop("keep_every", None)  # the shared one shall hold
    params["tables"] = ["rivals", "noise", "reward"]
    return params


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    checkout = Checkout(tmp_path_factory.mktemp("checkout"))
    checkout.set_params(tiny)
    result = checkout.run("dvc", "repro", "report")
    assert result.returncode == 0, result.stdout + result.stderr
    return checkout


def running(result) -> set[str]:
    """The stages that DVC says it runs."""
    return running_in(result.stdout)


def running_in(log: str) -> set[str]:
    return {line.split("'")[1] for line in log.splitlines() if line.startswith("Running stage")}


def all_runs(checkout):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{checkout.path}/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    return client, client.search_runs([experiment.experiment_id], max_results=100)


def test_the_report_and_its_figures_are_there(checkout):
    report = (checkout.path / "reports/report.md").read_text()
    assert "va-pi" in report and "cross-entropy" in report and "scorer-classifier" in report
    for figure in ("report/samples", "report/curves", "report/precision-recall", "reconstructions"):
        assert f"figures/{figure}.png" in report
        assert (checkout.path / f"reports/figures/{figure}.png").stat().st_size > 1000


def test_the_whole_experiment_runs_its_own_variants_alone(checkout):
    stages = set(checkout.lock())
    assert {name for name in stages if name.startswith("align")} == {"align@va-pi", "align@cross-entropy"}
    assert {name for name in stages if name.startswith("s") and name != "subset"} == {
        *(f"{kind}@{name}" for kind in ("sample", "score") for name in ("va-pi", "cross-entropy")),
        "sample-control@base",
        "score-control@base",
    }


def test_every_set_is_scored_by_every_extractor(checkout):
    metrics = json.loads((checkout.path / "reports/metrics.json").read_text())
    settings = {f"{row} g={guidance}" for row in ("base", "va-pi", "cross-entropy") for guidance in (1.0, 1.5)}
    settings |= {"base at T 0.8 g=1.0"}
    assert set(metrics) == set(EXTRACTORS)
    for scores in metrics.values():
        assert set(scores) == settings
        assert all(score["fid"] > 0 for score in scores.values())
    scores = pd.read_csv(checkout.path / "reports/scores/experiment/va-pi/scores.csv")
    # two guidance scales, and one set on its way
    assert len(scores) == len(EXTRACTORS) * 3 and list(scores["steps"].dropna()) == [2] * len(EXTRACTORS)


def test_every_alignment_is_one_finished_mlflow_run_with_curves_and_scores(checkout):
    client, runs = all_runs(checkout)
    keys = [run.data.tags["dvc.key"] for run in runs]
    assert len(keys) == len(set(keys))
    assert {run.info.status for run in runs} == {"FINISHED"}
    by_name = {run.info.run_name: run for run in runs}
    stages = {name for name in checkout.lock() if not name.startswith(("_", "align"))}
    assert set(by_name) == stages | {"pipeline", VA_PI, "cross-entropy · seed 0", "base · seed 0"}
    aligned = by_name[VA_PI]
    tags = {name: aligned.data.tags[name] for name in ("stage", "variant", "table", "profile")}
    assert tags == {"stage": "align", "variant": "va-pi", "table": "experiment", "profile": "tiny"}
    noise = yaml.safe_load((ROOT / "params.yaml").read_text())["align"]["noise_ratio"]
    assert aligned.data.params["noise_ratio"] == str(noise) and aligned.data.params["terms"] == "mse+perceptual"
    assert len(client.get_metric_history(aligned.info.run_id, "train/reward")) == 3
    assert "score/fid/scorer" in aligned.data.metrics
    base = by_name["base · seed 0"]
    assert base.data.tags["stage"] == "control"
    assert {"score/fid/scorer", "score/fid/scorer/T0.8-g1.0"} <= set(base.data.metrics)
    assert by_name["tokenizer"].data.tags["mlflow.parentRunId"] == by_name["pipeline"].info.run_id


def test_a_second_repro_runs_nothing(checkout):
    before = checkout.lock()
    assert running(checkout.run("dvc", "repro", "report")) == set()
    assert checkout.lock() == before


def test_an_output_is_a_read_only_link_into_the_cache_and_no_second_copy(checkout):
    cached = {path.stat().st_ino for path in (checkout.path / ".dvc/cache/files").rglob("*")}
    files = [path for path in (checkout.path / "data").rglob("*") if path.is_file() and path.stat().st_size]
    assert len(files) > 50
    for path in files:
        assert path.stat().st_ino in cached and path.stat().st_mode & 0o222 == 0, path


def test_a_forced_rerun_of_the_alignment_gives_the_same_bytes_and_its_run_keeps_its_scores(checkout):
    def outputs():
        return [o["md5"] for o in checkout.lock()["align@va-pi"]["outs"] if "stages" not in o["path"]]

    def run():
        (found,) = [run for run in all_runs(checkout)[1] if run.info.run_name == VA_PI]
        return found

    before, earlier = outputs(), run()
    result = checkout.run("dvc", "repro", "--force", "--single-item", "align@va-pi")
    assert result.returncode == 0, result.stderr
    assert outputs() == before and len(before) == 2
    again = run()
    assert again.info.run_id != earlier.info.run_id and again.info.status == "FINISHED"
    for name in ("score/fid/scorer", "score/fid/scorer/T1.0-g1.5"):
        assert again.data.metrics[name] == earlier.data.metrics[name]
    assert running(checkout.run("dvc", "repro", "report")) == set()


def test_a_change_of_the_alignment_re_runs_nothing_before_it(checkout):
    kept = (checkout.path / "params.yaml").read_text()
    checkout.set_params(lambda params: params | {"align": params["align"] | {"noise_ratio": 0.25}})
    changed = json.loads(checkout.run("dvc", "status", "--json", "--with-deps", "report").stdout)
    (checkout.path / "params.yaml").write_text(kept)
    assert set(changed) == {"align@va-pi", "align@cross-entropy", "report"}  # and all that build on these


def test_a_change_of_one_variant_re_runs_that_variant_alone(checkout):
    def change(params):
        params["variants"]["va-pi"]["align"] = {"noise_ratio": 0.25}
        return params

    kept = (checkout.path / "params.yaml").read_text()
    checkout.set_params(change)
    changed = json.loads(checkout.run("dvc", "status", "--json", "--with-deps", "report").stdout)
    (checkout.path / "params.yaml").write_text(kept)
    assert set(changed) == {"align@va-pi", "sample@va-pi", "report"}


def test_a_row_that_is_taken_out_leaves_the_report_too(checkout):
    kept = (checkout.path / "params.yaml").read_text()
    checkout.set_params(lambda params: params | {"variants": {"va-pi": params["variants"]["va-pi"]}, "tables": []})
    changed = json.loads(checkout.run("dvc", "status", "--json", "--with-deps", "report").stdout)
    (checkout.path / "params.yaml").write_text(kept)
    assert set(changed) == {"report"}


def test_a_wrong_parameter_stops_a_stage_with_one_message(checkout):
    kept = (checkout.path / "params.yaml").read_text()
    checkout.set_params(lambda params: params | {"align": params["align"] | {"noise_ratio": 1.5}})
    result = checkout.run(*stage("align", "va-pi"))
    (checkout.path / "params.yaml").write_text(kept)
    assert result.returncode == 1
    assert result.stderr.startswith("error: align.noise_ratio: ") and "Traceback" not in result.stderr


def stage(*arguments: str) -> tuple[str, ...]:
    return ("python", "-m", "pipelines.stages", *arguments)


def test_a_misspelt_variant_or_stage_is_none(checkout):
    result = checkout.run(*stage("align", "vapi"))
    assert result.returncode == 1 and "there is no variant 'vapi'; there are base, " in result.stderr
    assert not (checkout.path / "data/aligned/vapi").exists()
    result = checkout.run(*stage("alin", "va-pi"))
    assert result.returncode == 2 and "STAGE is one of subset, " in result.stderr


def test_a_damaged_input_is_named_with_the_command_that_makes_it_anew(copied):
    weights = copied.path / "data/generator/generator.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(content[:-100])
    shutil.rmtree(copied.path / "data/aligned/va-pi")
    result = copied.run(*stage("align", "va-pi"))
    assert result.returncode == 1
    assert "generator.safetensors" in result.stderr and "dvc repro generator" in result.stderr
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
    return launched(checkout, tmp_path / "copy")


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
runpy.run_module("pipelines.stages", run_name="__main__")
"""


def test_a_killed_alignment_goes_on_from_its_checkpoint_to_the_same_bytes(checkout, copied):
    output, curves = "data/aligned/va-pi", "reports/curves/va-pi/0.csv"
    for folder in (output, "reports/curves/va-pi"):
        shutil.rmtree(copied.path / folder)  # as DVC does before a stage runs
    counting = "step 0"  # the operations of an image are counted first
    killed = copied.run("python", "-c", ALIGN, "2", "align", "va-pi")
    assert killed.returncode == -signal.SIGKILL and not (copied.path / output).exists()
    assert killed.stdout.split("\n")[:-1] == [counting, "step 0", "step 1", "step 2"]
    resumed = copied.run("python", "-c", ALIGN, "never", "align", "va-pi")
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.split("\n")[:-1] == [counting, "step 2"]
    files = {str(p.relative_to(checkout.path)) for p in (checkout.path / output).rglob("*") if p.is_file()}
    weights = {f"{output}/0/{folder}generator.{end}" for folder in ("", "steps/2/") for end in ("safetensors", "json")}
    assert files == weights | {f"{output}/0/run.json", f"{output}/run.json"}
    for file in (*files, curves):
        assert (copied.path / file).read_bytes() == (checkout.path / file).read_bytes(), file
    assert not list((copied.path / ".work/checkpoints").iterdir())
    client, runs = all_runs(copied)
    (run,) = [run for run in runs if run.info.run_name == VA_PI]
    assert run.info.status == "FINISHED"
    assert [m.step for m in client.get_metric_history(run.info.run_id, "train/reward")] == [1, 2, 3]


@pytest.fixture
def parallel(checkout, tmp_path):
    """A copy of the checkout in which stages run as two processes."""
    return launched(checkout, tmp_path / "parallel", processes=2)


def test_on_two_processes_a_stage_starts_torchrun_comes_to_the_same_and_is_one_mlflow_run(checkout, parallel):
    from safetensors.numpy import load_file

    for arguments in (("align", "va-pi"), ("sample", "base")):
        result = parallel.run(*stage(*arguments))
        assert result.returncode == 0, result.stdout + result.stderr
    alone, together = (load_file(c.path / "data/aligned/va-pi/0/generator.safetensors") for c in (checkout, parallel))
    assert all(np.abs(together[name] - weights).max() < 1e-5 for name, weights in alone.items())
    assert any((together[name] != weights).any() for name, weights in alone.items())  # a run of its own
    alone, together = (
        np.load(c.path / "data/samples/experiment/base/t1.0-g1.5-0/images.npy").astype(int)
        for c in (checkout, parallel)
    )
    same = np.abs(together - alone).max((1, 2, 3)) <= 1
    assert same.mean() > 0.9  # rounding, of another number of threads too, can turn a token of an image
    runs = all_runs(parallel)[1]
    names = [run.info.run_name for run in runs]
    assert names.count(VA_PI) == names.count("sample-control@base") == 1
    assert {run.info.status for run in runs} == {"FINISHED"}


def until_told(end, lines):
    """The lines up to the one that has this."""
    for line in lines:
        yield line
        if end in line:
            return


def test_two_nodes_come_to_the_same_bytes_as_one_with_as_many_processes(parallel, checkout, tmp_path):
    apart = launched(checkout, tmp_path / "apart", nodes=2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    environment = apart.environment() | {"VAPI_RENDEZVOUS": f"127.0.0.1:{port}"}
    apart.environment = lambda: environment
    node = ("python", "-m", "pipelines.cli", "node")
    with subprocess.Popen(
        node, cwd=apart.path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as other:
        try:
            for arguments in (("tokenize",), ("align", "va-pi"), ("sample", "va-pi")):
                for copied in (parallel, apart):
                    result = copied.run(*stage(*arguments))
                    assert result.returncode == 0, result.stdout + result.stderr
            told = "".join(until_told("sample@va-pi ended", other.stdout))  # a moment after the first node's command
        finally:
            other.send_signal(signal.SIGTERM)
    for kind in ("tokenize", "align@va-pi", "sample@va-pi"):
        assert f"{kind} begins." in told and f"{kind} ended well." in told
    for file in (
        "data/tokens/tokens.npy",
        "data/aligned/va-pi/0/generator.safetensors",
        "data/samples/experiment/va-pi/t1.0-g1.0-0/images.npy",
        "reports/curves/va-pi/0.csv",
    ):
        assert (apart.path / file).read_bytes() == (parallel.path / file).read_bytes(), file
    assert [run.info.run_name for run in all_runs(apart)[1]].count(VA_PI) == 1


@needs_slurm
def test_a_job_of_slurm_aligns_on_two_nodes(checkout, tmp_path):
    shared = copy.copy(checkout)
    shared.path = shutil.copytree(checkout.path, tmp_path / "shared")
    shared.set_params(
        lambda params: params | {"launch": params["launch"] | {"nodes": 2}, "align": params["align"] | {"steps": 4}}
    )
    (shared.path / ".venv").symlink_to(sys.prefix)
    (port,) = free_ports(1)
    own = {"VAPI_RENDEZVOUS": f"127.0.0.1:{port}", "PYTHONPATH": str(shared.path)}
    with slurm(nodes=2) as cluster:
        job = subprocess.run(
            ["sbatch", "--wait", str(ROOT / "scripts/slurm/nodes.sbatch"), "align@va-pi"],
            cwd=shared.path,
            env=shared.environment() | own | cluster,
            check=False,
        )
    (log,) = (path.read_text() for path in shared.path.glob("slurm-nodes-*.log"))
    assert job.returncode == 0 and running_in(log) == {"align@va-pi"}, log
    assert log.count("waits for stages of the first node") == 1  # one `vapi node`, since there is one other node
    assert "waits for 1 more of 2 nodes" in log and "align@va-pi ended well." in log
    assert len(pd.read_csv(shared.path / "reports/curves/va-pi/0.csv")) == 4


def test_an_error_of_all_processes_is_told_once(parallel):
    (parallel.path / "data/classifiers/reward/classifier.safetensors").unlink()
    result = parallel.run(*stage("align", "va-pi"))
    assert result.returncode == 1
    assert result.stderr.count("error: ") == 1 and "classifier.safetensors" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_alignment_under_bfloat16_is_another_one_and_still_a_training(checkout, tmp_path):
    halved = launched(checkout, tmp_path / "bfloat16", dtype="bfloat16")
    result = halved.run(*stage("align", "va-pi"))
    assert result.returncode == 0, result.stdout + result.stderr
    curves = pd.read_csv(halved.path / "reports/curves/va-pi/0.csv")
    whole = pd.read_csv(checkout.path / "reports/curves/va-pi/0.csv")
    assert curves["loss"].notna().all() and (curves["loss"] != whole["loss"]).any()


def test_the_table_of_rivals_runs_only_what_it_lacks_and_leaves_the_experiment_up_to_date(checkout):
    result = checkout.run("dvc", "repro", "table@rivals")
    assert result.returncode == 0, result.stdout + result.stderr
    rival = "tokenizer-post-training"
    assert running(result) == {
        *(f"{kind}@{rival}" for kind in ("align", "sample", "score")),
        "sample-control@temperatures",
        "score-control@temperatures",
        "table@rivals",
    }
    report = (checkout.path / "reports/rivals.md").read_text()
    assert "VA-π" in report and f"| {rival} |" in report and "40 images" in report
    assert (checkout.path / "reports/figures/rivals/densities.png").stat().st_size > 1000
    stages = checkout.path / "reports/stages"
    assert json.loads((stages / f"align@{rival}.json").read_text())["flops_per_image"] > 0
    assert running(checkout.run("dvc", "repro", "report")) == set()


def test_an_ablation_table_runs_its_own_rows_alone(checkout):
    result = checkout.run("dvc", "repro", "table@reward")
    assert result.returncode == 0, result.stdout + result.stderr
    assert running(result) == {*(f"{kind}@only-prior" for kind in ("align", "sample", "score")), "table@reward"}
    report = (checkout.path / "reports/reward.md").read_text()
    assert "prior only" in report and "14.17" in report and "88.78" in report and "40 images" in report
    for picture in ("axis", "samples"):
        assert (checkout.path / f"reports/figures/reward/{picture}.png").stat().st_size > 1000
    metrics = json.loads((checkout.path / "reports/stages/score@only-prior.json").read_text())
    assert metrics["score/fid/scorer"] > 0
    runs = {run.info.run_name: run for run in all_runs(checkout)[1]}
    parent = runs["only-prior · ξ 0.5 · β 0.1 · ce · prior · seed 0"].data.tags["mlflow.parentRunId"]
    assert parent == runs["table@reward"].info.run_id
    assert running(checkout.run("dvc", "repro", "report", "table@reward")) == set()


@pytest.fixture(scope="module")
def swept(checkout):
    """The checkout with a commit, on which the experiments of sweeps build."""
    for command in (
        ("add", "-A"),
        ("-c", "user.name=tiny", "-c", "user.email=tiny@example.com", "commit", "-qm", "run"),
    ):
        assert checkout.run("git", *command).returncode == 0
    return checkout


def plan_cell(checkout, **form):
    """The one cell of a form, once what cells share is there, which costs no stage."""
    form, baseline = opening_form(seeds=[0], steps=2, **form), sweep.read_baseline(None, checkout.path)
    upstream = sweep.plan_upstream(form, baseline)
    result = checkout.run(*sweep.command(upstream))
    assert result.returncode == 0 and running(result) == set(), result.stdout + result.stderr
    bases = sweep.read_bases(experiments(checkout.path)[upstream.name], checkout.path)
    locked = {out["path"]: out["md5"] for stage in checkout.lock().values() for out in stage["outs"]}
    assert {"data/tokenizer", "data/tokens", "data/generator", "data/classifiers/reward"} <= set(bases)
    assert bases.items() <= locked.items()
    (cell,) = sweep.plan_cells(form, baseline, bases)
    return cell


def test_a_cell_of_a_sweep_is_an_experiment_that_takes_its_upstream_from_the_cache_and_keeps_its_scores(swept):
    cell = plan_cell(swept, noise_ratios=[0.9])
    result = swept.run(*sweep.command(cell))
    assert result.returncode == 0, result.stdout + result.stderr
    assert running(result) == {f"{kind}@{cell.cell.name}" for kind in ("align", "sample", "score")}
    scores = cells.read_scores(cell.name, swept.path)
    assert scores["score/fid/scorer"][0] > 0


# the program `python` of a cell: its stage `sample` tells which images it draws, and the first time, as if by a power
# cut, the stage, DVC and all else of the cell are gone when one batch of them is on disk
PYTHON = """#!/bin/sh
[ "$2 $3" = "pipelines.stages sample" ] && exec {python} {draw} "$@"
exec {python} "$@"
"""
DRAW = """
import os, runpy, signal, sys
sys.path[0], sys.argv = "", sys.argv[2:]
from vapi_core.data.partial import PartialArray
write = PartialArray.write
def watched(self, rows, values):
    write(self, rows, values)
    print("drew", rows.start, rows.stop, flush=True)
    if os.path.exists({mark!r}):
        os.remove({mark!r})
        os.killpg(0, signal.SIGKILL)
PartialArray.write = watched
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def test_a_cell_that_was_killed_while_it_drew_goes_on_from_its_images_to_the_same_bytes(swept, tmp_path, monkeypatch):
    def run(*command, folder=swept.path, **environment):
        environment |= {"PATH": f"{tmp_path}:{swept.environment()['PATH']}"}
        result = subprocess.run(
            command,
            cwd=folder,
            env=swept.environment() | environment,
            capture_output=True,
            text=True,
            start_new_session=True,
        )
        drawn = [line for line in result.stdout.splitlines() if line.startswith("drew")]
        return result, drawn

    def images(lock):
        outs = yaml.safe_load(lock)["stages"][f"sample@{name}"]["outs"]
        return [out["md5"] for out in outs if out["path"].startswith("data/samples")]

    cell = plan_cell(swept, noise_ratios=[0.8])
    name, mark = cell.cell.name, tmp_path / "first"
    (tmp_path / "draw.py").write_text(DRAW.format(mark=str(mark)))
    (tmp_path / "python").write_text(PYTHON.format(python=sys.executable, draw=tmp_path / "draw.py"))
    (tmp_path / "python").chmod(0o755)
    mark.touch()

    result, drawn = run(*sweep.command(cell))
    assert result.returncode == -signal.SIGKILL and drawn == ["drew 0 20"], result.stderr
    assert cell.name not in experiments(swept.path)

    result, drawn = run(*sweep.command(cell))
    assert result.returncode == 0 and drawn == ["drew 20 40"], result.stdout + result.stderr
    assert running(result) == {f"sample@{name}", f"score@{name}"}  # the alignment is in DVC's cache
    resumed = images(swept.run("git", "show", f"{experiments(swept.path)[cell.name]}:dvc.lock").stdout)

    clone, work = swept.path / ".work/clones/0", swept.path / ".work"
    own = {"VAPI_REPOSITORY": str(swept.path), "VAPI_WORK": str(work), "DVC_EXP_NAME": cell.name}
    result, drawn = run("dvc", "repro", "--force", "--single-item", f"sample@{name}", folder=clone, **own)
    assert result.returncode == 0 and drawn == ["drew 0 20", "drew 20 40"], result.stdout + result.stderr
    assert images((clone / "dvc.lock").read_text()) == resumed and len(resumed) == 1


@pytest.mark.slow
def test_a_cell_of_two_processes_comes_to_what_one_process_comes_to(swept):
    from safetensors.numpy import load_file

    def run(processes, strategy):
        swept.set_params(
            lambda params: (
                params
                | {"launch": params["launch"] | {"strategy": strategy}, "align": params["align"] | {"images_every": 0}}
            )
        )
        cell = plan_cell(swept, noise_ratios=[0.7], processes=processes)
        shutil.rmtree(swept.path / ".dvc/cache/runs")  # from which DVC takes what any number of processes has made
        result = swept.run(*sweep.command(cell))
        assert result.returncode == 0, result.stdout + result.stderr
        assert running(result) == {f"{kind}@{cell.cell.name}" for kind in ("align", "sample", "score")}
        assert cells.read_scores(cell.name, swept.path)["score/fid/scorer"][0] > 0
        return cell, load_file(swept.path / f".work/clones/0/data/aligned/{cell.cell.name}/0/generator.safetensors")

    kept = (swept.path / "params.yaml").read_text()
    (one, alone), *others = (run(*how) for how in ((1, "ddp"), (2, "ddp"), (2, "fsdp")))
    (swept.path / "params.yaml").write_text(kept)
    for cell, together in others:
        assert cell.name != one.name and cell.cell.name == one.cell.name
        assert all(np.abs(together[name] - values).max() < 1e-5 for name, values in alone.items())
        assert any((together[name] != values).any() for name, values in alone.items())  # a run of its own


def test_of_all_these_runs_none_has_written_into_what_is_cached(checkout):
    """Last: an output that is a link would take the cache's copy along, and root may write to read-only files."""
    files = [path for path in (checkout.path / ".dvc/cache/files/md5").rglob("*") if path.is_file()]
    for path in files:
        name = f"{path.parent.name}{path.name}".removesuffix(".dir")
        assert hashlib.md5(path.read_bytes()).hexdigest() == name, path
