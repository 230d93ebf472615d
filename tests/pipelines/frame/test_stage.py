"""What a stage goes on from, and what its messages tell a user to do."""

import os
import shutil
import signal
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest

from pipelines.config.loading import load_params
from pipelines.config.paths import SCORES, TOKENS, remedy
from pipelines.frame.inputs import open_samples
from pipelines.frame.stage import Stage, StagePlan, UntrackedRun, remove_dvc_leftovers, upstream_keys
from pipelines.tracking.journal import all_journals
from tests.damage import check_every_flip_is_named
from vapi_core import fingerprint
from vapi_core.arrays import write_manifest
from vapi_core.errors import FileError
from vapi_core.files import read_checked_json, write_checked_json, write_json


@pytest.fixture
def training(tmp_path, monkeypatch):
    """A stage that trains on what `generator` made, with code of its own."""
    code, generator = tmp_path / "vapi_core", tmp_path / "generator"
    shutil.copytree(fingerprint.CODE, code, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(fingerprint, "CODE", code)
    generator.mkdir()
    write_json(generator / "generator.json", {"sha256": "a"})
    write_json(generator / "run.json", {"key": "k"})
    plan = StagePlan("align@va-pi", tmp_path / "aligned", {}, (generator,))
    return Stage(plan, load_params(), None, UntrackedRun(), key="key")


def test_a_checkpoint_is_that_of_the_same_parameters_inputs_and_code(training, tmp_path):
    first = training.fingerprint
    assert training.fingerprint == first
    write_json(tmp_path / "generator/run.json", {"key": "k", "experiment": "another name"})
    (tmp_path / "vapi_core/scoring/fidelity.py").write_text("# scores have no part in a training\n")
    assert training.fingerprint == first
    write_json(tmp_path / "generator/generator.json", {"sha256": "b"})  # other weights from the same parameters
    other_inputs = training.fingerprint
    (tmp_path / "vapi_core/alignment/objective.py").write_text("# another objective\n")
    other_code = training.fingerprint
    (tmp_path / "vapi_core/models/classifier.py").write_text("# another network that rewards\n")
    other_reward = training.fingerprint
    (tmp_path / "generator/captions").mkdir()
    write_json(tmp_path / "generator/captions/manifest.json", {"sha256": "c"})
    other_captions = training.fingerprint
    training.key = "another"
    assert len({first, other_inputs, other_code, other_reward, other_captions, training.fingerprint}) == 6


@pytest.mark.parametrize("content", ["{", "{}", "[1]", '{"key": 5}'])
def test_an_input_whose_run_cannot_be_told_is_named_with_the_command_that_makes_it(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (TOKENS / "run.json").parent.mkdir(parents=True)
    (TOKENS / "run.json").write_text(content)
    with pytest.raises(FileError, match=r"tokens/run\.json: the file is damaged.*`dvc repro tokenize`"):
        upstream_keys(StagePlan("generator", tmp_path, {}, (TOKENS,)))


def test_the_command_that_makes_an_output_anew_names_the_stage_of_dvc_yaml():
    from dvc.repo import Repo

    checked = 0
    for stage in Repo(str(Path.cwd())).index.stages:
        for out in stage.outs:
            path = Path(out.def_path)
            if path.parts[0] == "data" or path.is_relative_to(SCORES):
                target = remedy(path).split("`")[1].removeprefix("dvc repro ").removeprefix("--glob ").strip("'")
                assert fnmatch(stage.addressing, target), path
                checked += 1
    assert checked > 50
    for path in ("data/aligned/va-pi/4/steps/20", "data/samples/experiment/va-pi/t1.0-g1.0-4"):
        assert remedy(Path(path)).endswith(("`dvc repro align@va-pi`.", "`dvc repro --glob 'sample*@va-pi'`."))


@pytest.fixture
def samples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("data/samples/experiment/va-pi/t1.0-g1.0-4")
    folder.mkdir(parents=True)
    np.save(folder / "images.npy", np.zeros((3, 4, 4, 3), np.uint8))
    np.save(folder / "labels.npy", np.arange(3))
    write_manifest(folder, {"kind": "samples", "shape": [3, 4, 4, 3]}, ("images.npy", "labels.npy"))
    return folder


def test_a_finished_set_is_opened_with_its_labels(samples):
    images, labels = open_samples(samples)
    assert images.shape == (3, 4, 4, 3) and labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "manifest.json"])
@pytest.mark.parametrize("damage", ["missing", "cut off"])
def test_a_set_that_lacks_something_is_named_with_the_command_that_draws_it(samples, name, damage):
    whole = (samples / name).read_bytes()
    (samples / name).unlink()
    if damage == "cut off":
        (samples / name).write_bytes(whole[:-5])
    with pytest.raises(
        FileError, match=rf"{name}: .*{damage if damage == 'missing' else 'damaged'}.*repro --glob 'sample\*@va-pi'`"
    ):
        open_samples(samples)


@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "manifest.json"])
def test_whatever_byte_of_a_set_flips_the_file_is_named(samples, name):
    check_every_flip_is_named(samples / name, lambda: open_samples(samples))


@pytest.mark.parametrize("key", ["shape", "sha256"])
@pytest.mark.parametrize("value", [None, 5, "five", [], {}])
def test_a_manifest_of_samples_without_an_entry_is_named_with_the_command_that_draws_them(samples, key, value):
    manifest = read_checked_json(samples / "manifest.json")
    changed = {name: entry for name, entry in manifest.items() if name != key} | ({} if value is None else {key: value})
    write_checked_json(samples / "manifest.json", changed)
    with pytest.raises(FileError, match=r"manifest\.json: the manifest is damaged.*repro --glob 'sample\*@va-pi'`"):
        open_samples(samples)


def test_a_set_of_an_older_version_is_told_so(samples):
    write_json(samples / "manifest.json", {"kind": "samples", "shape": [3, 4, 4, 3]})
    with pytest.raises(
        FileError, match=r"manifest\.json: .*written by an older version.*repro --glob 'sample\*@va-pi'`"
    ):
        open_samples(samples)


INTERRUPTED = """
import argparse, signal, sys, time
from pathlib import Path
from pipelines.frame.stage import StagePlan, run_stage
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.default_int_handler)  # whatever the test's caller has ignored
def work(stage, arguments):
    stage.run.log({"loss": 1.0}, step=1)
    print("works", flush=True)
    time.sleep(60)
sys.exit(run_stage(lambda params, arguments: StagePlan("tokenizer", Path("out"), {}), work, argparse.Namespace()))
"""


@pytest.mark.parametrize(("number", "code", "name"), [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")])
def test_a_stage_that_is_asked_to_end_closes_its_run_as_killed_and_says_one_line(tmp_path, number, code, name):
    shutil.copy("params.yaml", tmp_path)
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path.cwd()),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
    }
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", INTERRUPTED]
    stage = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=pipe, stderr=pipe, text=True)
    assert stage.stdout is not None and stage.stdout.readline() == "works\n"
    stage.send_signal(number)
    _, errors = stage.communicate()
    assert stage.returncode == code and errors.splitlines()[-1] == f"stopped by {name}" and "Traceback" not in errors
    (journal,), _ = all_journals(tmp_path / ".work/tracking")
    assert journal.state()["status"] == "KILLED" and not (tmp_path / "out").exists()


def test_what_a_killed_dvc_left_beside_the_reports_is_removed_and_nothing_else(tmp_path):
    left, other = tmp_path / "curves" / ".0txQ2WhMG0L1j67FGSP5Bg.tmp", tmp_path / "curves" / ".mine.tmp"
    left.parent.mkdir()
    left.touch()
    other.touch()
    remove_dvc_leftovers(tmp_path)
    assert list(left.parent.iterdir()) == [other]
