"""DVC's remotes by S3 and by SSH, with real servers: a run that is pushed here is pulled there, and so is a cell."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.repository.git import experiments, git
from pipelines.variants.sweep import Experiment, command
from tests.checkout import Checkout
from tests.stores import needs_sshd, s3_store, set_remote, ssh_store
from tests.toy import WORK, make_toy, variant_of


@pytest.fixture(scope="module", params=["s3", pytest.param("ssh", marks=needs_sshd)])
def store(request, tmp_path_factory):
    """The settings of a remote whose server runs."""
    with s3_store() if request.param == "s3" else ssh_store(tmp_path_factory.mktemp("ssh")) as settings:
        yield settings


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def small(params: dict) -> dict:
    params["subset"]["splits"] = {"train": 20, "scorer": 20, "heldout": 20}
    params["classifiers"]["uci"]["epochs"] = 1
    return params


def test_a_run_that_is_pushed_is_pulled_by_another_clone_which_then_has_nothing_to_run(store, tmp_path):
    def run(checkout, *line):
        result = checkout.run(*line)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    here = Checkout(tmp_path / "here")
    here.set_params(small)
    set_remote(here.path, store)
    run(here, "dvc", "repro", "classifier@uci")
    run(here, "dvc", "push")
    there = Checkout(tmp_path / "there")
    for name in ("dvc.lock", "params.yaml", ".dvc/config", "reports"):
        run(here, "cp", "-r", name, there.path / Path(name).parent)
    run(there, "dvc", "pull", "classifier@uci", "subset")
    assert files(there.path / "data") == files(here.path / "data") != {}
    assert "Running stage" not in run(there, "dvc", "repro", "classifier@uci")


class Machine:
    """A clone that is a machine of its own: its own working files and DVC cache."""

    def __init__(self, root: Path):
        self.root, self.work = root, root / WORK
        self.work.mkdir()

    def run(self, experiment: Experiment) -> None:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "VAPI_WORK": str(self.work)}
        subprocess.run(command(experiment, shared=True), cwd=self.root, env=environment, check=True)

    def ran(self) -> list[str]:
        """The stages that began here, in their order."""
        log = self.work / "stages.log"
        return (
            [line.split()[1] for line in log.read_text().splitlines() if line.startswith("began")]
            if log.exists()
            else []
        )


def test_a_cell_builds_on_what_another_machine_made_and_is_there_for_it_in_turn(store, tmp_path):
    make_toy(tmp_path / "one")
    one = Machine(tmp_path / "one")
    set_remote(one.root, store)
    git(tmp_path, "init", "--quiet", "--bare", "origin.git")
    user = ("-c", "user.name=toy", "-c", "user.email=toy@example.com")
    git(one.root, *user, "commit", "-qam", "remote")
    git(one.root, "remote", "add", "origin", "../origin.git")
    git(one.root, "push", "-q", "origin", "HEAD")
    git(tmp_path, "clone", "-q", "origin.git", "other")
    other, head = Machine(tmp_path / "other"), git(one.root, "rev-parse", "HEAD").strip()

    def cell(name: str, suffix: str) -> Experiment:
        variant = {"table": "sweep", "method": "va-pi", "align": {"noise_ratio": 0.2}, "guidance_scales": [1.0]}
        return Experiment(f"{name}-{suffix}", head, "upstream", {f"+variants.{name}": variant}, f"score@{name}")

    one.run(Experiment("upstream", head, head, {"align.seeds": [1]}, "score-control@base"))
    first, again = (cell(variant_of(0.2), suffix) for suffix in ("00000000", "11111111"))  # after a commit, say
    other.run(first)
    assert "generator" in one.ran() and other.ran() == [first.stage]
    made_before = one.ran()
    one.run(first)  # which it has from origin
    one.run(again)  # which is another experiment, whose stages DVC's run cache has
    assert one.ran() == made_before
    commits = experiments(one.root)
    assert commits[first.name] == experiments(other.root)[first.name]
    scores = f"reports/scores/sweep/{variant_of(0.2)}/scores.csv"
    assert len({git(one.root, "show", f"{commits[name]}:{scores}") for name in (first.name, again.name)}) == 1
    git(tmp_path, "clone", "-q", "origin.git", "third")
    third = Machine(tmp_path / "third")
    third.run(Experiment("copy", head, first.name, {}, first.stage))  # of which everything is made
    assert third.ran() == [] and experiments(third.root).keys() >= {"copy"}
