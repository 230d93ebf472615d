"""Whoever is killed, and whenever: the same command again ends in what an uninterrupted run has, bit for bit."""

import shutil
from collections import Counter
from itertools import product
from types import SimpleNamespace

import pytest

from tests.kills import SIGNALS, VICTIMS, Experiment, count_moments, go_on, kill, plan, wait_until_alone

TRIALS, SEED = 20, 14
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A run to its end, what it has, and how many moments of each process there were in each of its stages."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    experiment, log = Experiment(folder / "checkout"), folder / "log"
    log.mkdir()
    assert experiment.start(folder / "said", log=str(log)).wait() == 0, (folder / "said").read_text()
    experiment.commit()
    return SimpleNamespace(
        experiment=experiment,
        outputs=experiment.outputs(),
        results=experiment.results(),
        runs=experiment.runs(),
        trials=plan(TRIALS, count_moments(log), SEED),
    )


def test_every_signal_reaches_everybody_and_every_stage_is_met(uninterrupted):
    trials = uninterrupted.trials
    assert {(trial.victim, trial.signal) for trial in trials} == set(product(VICTIMS, SIGNALS))
    assert {trial.stage for trial in trials} == set(uninterrupted.results)


def test_an_uninterrupted_run_is_one_finished_run_of_each_key_and_leaves_nothing(uninterrupted):
    assert all(count == 1 for count in Counter(key for key, *_ in uninterrupted.runs).values())
    assert {status for _, _, status, _ in uninterrupted.runs} == {"FINISHED"}
    assert uninterrupted.experiment.leftovers() == []
    wait_until_alone(uninterrupted.experiment)


@pytest.mark.parametrize("number", range(TRIALS))
def test_a_killed_run_that_is_gone_on_with_ends_as_an_uninterrupted_one(uninterrupted, tmp_path, number):
    trial = uninterrupted.trials[number]
    path = tmp_path / "checkout"
    if not trial.from_scratch:
        shutil.copytree(uninterrupted.experiment.path, path)
    experiment = Experiment(path)
    if not trial.from_scratch:
        experiment.forget(trial.stage)
    said = kill(experiment, trial, tmp_path)
    said += go_on(experiment)
    wait_until_alone(experiment)
    if "vapi upload" in said:
        assert experiment.run("python", "-m", "pipelines.tracking", "upload").returncode == 0
    assert "Traceback" not in said
    assert experiment.outputs() == uninterrupted.outputs, said
    assert experiment.results() == uninterrupted.results, said
    assert experiment.runs() == uninterrupted.runs, said
    assert experiment.leftovers() == [], said
