"""An experiment that DVC runs in a temporary folder leaves run, journal and checkpoints in its repository."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipelines.tracking import mlflow_runs

ROOT = Path(__file__).parents[3]
# a stage without its training: it reports, keeps a checkpoint, and asks for an asset, as the real ones do
STAGE = """
import yaml
from pathlib import Path
from pipelines.config.paths import OWN_WORK, REPOSITORY, WORK
from pipelines.tracking.runs import stage_run
noise = yaml.safe_load(open("params.yaml"))["noise"]
Path("out.txt").write_text(str(noise))
with stage_run(experiment="tiny", name="train", key=f"key-{noise}", params={"noise": noise}, tags={}) as run:
    run.log({"loss": noise}, step=1)
    run.artifact(Path("out.txt"))
for place, name in ((WORK / "checkpoints", noise), (OWN_WORK / "samples", noise)):
    place.mkdir(parents=True, exist_ok=True)
    (place / f"{name}").write_text("weights")
assert (REPOSITORY / "assets/weights.pt").read_text() == "ignored by git"
"""
STAGES = {"train": {"cmd": "python train.py", "params": ["noise"], "outs": ["out.txt"]}}


@pytest.fixture
def repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "VAPI_WORK", "VAPI_REPOSITORY", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    (tmp_path / "train.py").write_text(STAGE)
    (tmp_path / "params.yaml").write_text("noise: 0.1\n")
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": STAGES}))
    shutil.copy(ROOT / ".gitignore", tmp_path)
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets/weights.pt").write_text("ignored by git")
    for command in (
        "git init -q",
        "dvc init -q",
        "git add -A",
        "git -c user.name=a -c user.email=a@b commit -qm first",
    ):
        subprocess.run(command.split(), check=True)
    return tmp_path


def run(*command):
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("where", ["--temp", "--queue", None])
def test_run_journal_and_checkpoints_are_those_of_the_repository(repository, where):
    change = ["--set-param", "noise=0.5"]
    if where == "--queue":
        run("dvc", "exp", "run", "--queue", "--name", "half", *change)
        run("dvc", "exp", "run", "--run-all")  # in temporary folders too
    else:
        run("dvc", "exp", "run", *([where] if where else []), "--name", "half", *change)
    (half,) = mlflow_runs.find_runs("tiny", "params.noise = '0.5'")
    assert half.info.status == "FINISHED" and half.data.metrics == {"loss": 0.5}
    assert half.data.tags[mlflow_runs.EXPERIMENT_TAG] == "half"
    artifact = Path(half.info.artifact_uri, "out.txt")
    assert artifact.is_relative_to(repository / "mlruns") and artifact.read_text() == "0.5"
    assert (repository / ".work/tracking/key-0.5/metrics.jsonl").is_file()
    assert (repository / ".work/checkpoints/0.5").is_file()
    own = ".work" if where is None else ".work/experiments/half"  # no other experiment at work clears it away
    assert (repository / own / "samples/0.5").is_file()
