"""Trials: DVC runs a tiny experiment, one of its processes is killed at a known moment, and the run is gone on with."""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml

from tests.checkout import ROOT, Checkout
from vapi_core.files import TEMPORARY

VICTIMS = ("stage", "dvc", "uploader")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
TIMINGS = ("seconds", "peak_memory_mb", "images_per_second")  # what no two runs have in common
LOCK_TRIAL = 3  # the one that is killed while it writes dvc.lock
BOUND = 300  # seconds that nothing of a trial takes


def tiny(params: dict) -> dict:
    """Every stage of the report, each as short as it can be and with more than one seed, set and checkpoint."""
    params |= {"profile": "tiny", "threads": 1, "tables": []}
    params["subset"]["splits"] = {"train": 48, "scorer": 40, "heldout": 40}
    for role in params["classifiers"].values():
        role["epochs"] = 1
    training = {"steps": 4, "warmup_steps": 1, "batch_size": 16, "checkpoint_every": 1}
    params["tokenizer"] |= {"training": params["tokenizer"]["training"] | training, "unquantized_steps": 2}
    params["generator"] |= {"dim": 32, "layers": 1, "training": params["generator"]["training"] | training}
    params["align"] |= {"seeds": [0, 1], "steps": 3, "batch_size": 8, "group_size": 2, "log_kl_every": 2}
    params["align"] |= {"keep_every": 2, "checkpoint_every": 1}
    params["sample"] |= {"count": 20, "batch_size": 5, "guidance_scales": [1.0]}
    params["score"] |= {"extractors": ["scorer-classifier"], "input_size": 32, "is_splits": 2}
    params["score"] |= {"kid_subsets": 2, "kid_subset_size": 10}
    params["variants"] = {"va-pi": params["variants"]["va-pi"] | {"align": {}}}  # the shared keep_every shall hold
    params["controls"] = {"base": {"table": "experiment", "temperatures": [1.0], "guidance_scales": None}}
    return params


class Experiment(Checkout):
    """A checkout, new or one that is there, in which DVC and what it starts can be killed at a moment."""

    def __init__(self, path: Path):
        if path.exists():
            self.path = path
        else:
            super().__init__(path)
            self.set_params(tiny)
            self.commit()

    def start(self, said: Path, **moments: str) -> subprocess.Popen:
        """`dvc repro report` in a group of processes of its own, as a shell starts it; what it says goes to a file."""
        environment = {
            **self.environment(),
            "PYTHONPATH": str(ROOT / "tests/moments"),
            "MOMENTS_ROOT": str(self.path),
            **{f"MOMENTS_{name.upper()}": value for name, value in moments.items()},
        }
        with said.open("w") as file:
            return subprocess.Popen(
                ["dvc", "repro", "report"],
                cwd=self.path,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
                preexec_fn=heed_ctrl_c,
            )

    def commit(self) -> None:
        for command in (("add", "-A"), ("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "run")):
            assert self.run("git", *command).returncode == 0

    def outputs(self) -> dict[str, str]:
        """Every file that a run leaves -> hash of what two runs have in common of it."""
        files = [p for name in ("data", "reports") for p in sorted((self.path / name).rglob("*")) if p.is_file()]
        return {
            str(path.relative_to(self.path)): hashlib.sha256(untimed(path)).hexdigest()
            for path in files
            if path.name != ".gitignore"
        }

    def runs(self) -> list[tuple]:
        """The live runs in MLflow: key, name, status, and every metric that is no timing, in order."""
        with closing(sqlite3.connect(self.path / "mlflow.db")) as database:
            runs = database.execute(
                "select run_uuid, value, name, status from runs join tags using (run_uuid)"
                " where lifecycle_stage = 'active' and key = 'dvc.key' order by value"
            ).fetchall()
            metrics = "select key, step, value from metrics where run_uuid = ? order by key, step, timestamp"
            return [
                (*run, [row for row in database.execute(metrics, (number,)) if not row[0].endswith(TIMINGS)])
                for number, *run in runs
            ]

    def running(self) -> list[list[str]]:
        """Command lines of the processes that work here."""
        found = []
        for process in psutil.process_iter():
            try:
                if Path(process.cwd()).is_relative_to(self.path) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process.cmdline())
            except (psutil.Error, OSError):  # gone, or somebody else's
                continue
        return found

    def leftovers(self) -> list[str]:
        """Temporaries, checkpoints and half-drawn images."""
        files = [path for name in (".work", "data", "reports") for path in (self.path / name).rglob("*")]
        work = [self.path / ".work" / name for name in ("checkpoints", "samples")]
        return [
            str(path.relative_to(self.path))
            for path in files
            if TEMPORARY.fullmatch(path.name) or (path.is_file() and any(path.is_relative_to(w) for w in work))
        ]

    def forget(self, stage: str) -> None:
        """As if everything but this stage had been run, here and in DVC's cache."""
        lock = yaml.safe_load((self.path / "dvc.lock").read_text())
        command, forgotten = (lock["stages"][stage][name] for name in ("cmd", "outs"))
        del lock["stages"][stage]
        kept = {path for other in lock["stages"].values() for out in other["outs"] for path in self.cached(out)}
        for path in {path for out in forgotten for path in self.cached(out)} - kept:
            path.unlink(missing_ok=True)
        for run in (self.path / ".dvc/cache/runs").glob("*/*/*"):
            if yaml.safe_load(run.read_text())["cmd"] == command:
                shutil.rmtree(run.parent)
        for path in [self.path / out["path"] for out in forgotten]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        (self.path / "dvc.lock").write_text(yaml.safe_dump(lock, sort_keys=False))
        for name in (".work/features", ".work/samples"):
            shutil.rmtree(self.path / name, ignore_errors=True)
        (self.path / ".work/reconstructions.npy").unlink(missing_ok=True)

    def cached(self, out: dict) -> list[Path]:
        """What DVC's cache has of an output."""
        place = self.path / ".dvc/cache/files/md5"
        path = place / out["md5"][:2] / out["md5"][2:]
        listed = json.loads(path.read_text()) if path.suffix == ".dir" and path.exists() else []
        return [path, *(place / entry["md5"][:2] / entry["md5"][2:] for entry in listed)]

    def results(self) -> dict:
        """What dvc.lock says, without the hashes of files with timings."""
        lock = yaml.safe_load((self.path / "dvc.lock").read_text())["stages"]
        for out in (out for stage in lock.values() for out in stage["outs"] if is_timed(Path(out["path"]))):
            del out["md5"], out["size"]
        return lock


def heed_ctrl_c() -> None:
    """What a shell runs in the background ignores it, and what that starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def is_timed(path: Path) -> bool:
    return path.parent.name == "stages" or path.name == "report.md"


def untimed(path: Path) -> bytes:
    """A file without its timings."""
    content = path.read_bytes()
    if not is_timed(path):
        return content
    if path.suffix == ".json":
        return json.dumps({name: value for name, value in json.loads(content).items() if name not in TIMINGS}).encode()
    before, _, costs = content.partition(b"## What it cost")
    return before + costs.partition(b"All numbers")[2]


@dataclass(frozen=True)
class Trial:
    """Whom a signal reaches, and when: at a moment, of so many, of the process that is the clock."""

    number: int
    stage: str
    victim: str
    signal: signal.Signals
    clock: str
    moment: int
    from_scratch: bool
    at_once: bool  # whether the run is gone on with before all that the killed one started have ended

    def __str__(self) -> str:
        return f"{self.signal.name} of {self.victim} at moment {self.moment} of {self.clock} in {self.stage}"


def count_moments(log: Path) -> dict[tuple[str, str], int]:
    """(clock, stage) -> how many moments an uninterrupted run had; DVC's up to its writing of dvc.lock, after which it
    has to do with other stages."""
    moments = {}
    for file in log.iterdir():
        clock, stage = file.name.split()
        lines = file.read_text().splitlines()
        moments[clock, stage] = lines.index("open dvc.lock") + 1 if clock == "dvc" else len(lines)
    return moments


def plan(count: int, moments: dict[tuple[str, str], int], seed: int) -> list[Trial]:
    """Trials over all victims, signals and stages; the first one is from scratch, one is in the middle of writing
    dvc.lock.

    Args:
        moments: of an uninterrupted run, as `count_moments` has them.
    """
    chance = random.Random(seed)
    stages = sorted({stage for _, stage in moments})
    places = [*chance.sample(stages, len(stages)), *chance.choices(stages, k=count)][:count]
    pairs = [(victim, number) for victim in VICTIMS for number in SIGNALS]
    trials = []
    for number, stage in enumerate(places):
        victim, number_of_signal = pairs[number % len(pairs)]
        clock = chance.choice(("stage", "dvc")) if victim == "dvc" else victim
        if number == LOCK_TRIAL:
            victim, number_of_signal, clock = "dvc", signal.SIGKILL, "lock"
        moment = chance.randint(1, moments[clock, stage])
        trials.append(Trial(number, stage, victim, number_of_signal, clock, moment, number == 0, chance.random() < 0.5))
    return trials


def kill(experiment: Experiment, trial: Trial, folder: Path) -> str:
    """Runs DVC, kills at the moment of the trial, and returns what was said until DVC ended, or all of them."""
    address, said = str(folder / "socket"), folder / "said"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        listener.settimeout(1)
        dvc = experiment.start(said, at=f"{trial.clock} {trial.stage} {trial.moment}", socket=address)
        with accept(listener, dvc, said) as connection, connection.makefile() as told:
            number = int(told.readline())
            if trial.victim != "dvc":
                os.kill(number, trial.signal)
            elif trial.signal == signal.SIGINT:
                os.killpg(dvc.pid, trial.signal)  # as a terminal does
            else:
                dvc.send_signal(trial.signal)
    ended_well = dvc.wait(timeout=BOUND) == 0
    assert ended_well == (trial.victim == "uploader"), said.read_text()
    if not trial.at_once:
        wait_until_alone(experiment)
    return said.read_text()


def accept(listener: socket.socket, dvc: subprocess.Popen, said: Path) -> socket.socket:
    """The connection of who has come to the moment."""
    for _ in range(BOUND):
        with suppress(TimeoutError):
            return listener.accept()[0]
        assert dvc.poll() is None, f"DVC ended before the moment came:\n{said.read_text()}"
    dvc.kill()
    raise AssertionError(f"the moment never came:\n{said.read_text()}")


def go_on(experiment: Experiment) -> str:
    """What a user does: the same command again, after what it says is to be done first, and the upload of the rest."""
    said = ""
    for _ in range(3):
        result = experiment.run("dvc", "repro", "report")
        said += result.stdout + result.stderr
        if result.returncode == 0:
            return said
        advice = experiment.run("python", "-m", "pipelines.repository.lockfile").stderr
        said += advice
        if mend := re.search("Run `(.*?)`", advice):
            assert experiment.run(*mend[1].split()).returncode == 0
    raise AssertionError(said)


def wait_until_alone(experiment: Experiment) -> None:
    """Until no process works in the checkout."""
    deadline = time.monotonic() + BOUND
    while left := experiment.running():
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
