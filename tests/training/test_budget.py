"""A training ends after its steps, or after its seconds."""

import pytest

from tests.tiny import NO_DROPOUT, tiny_generator
from tests.training.test_loop import Killed, config, run
from vapi_core.files import read_json
from vapi_core.training.budget import Clock, steps_of_budget
from vapi_core.training.loop import learning_rate
from vapi_core.training.states import HISTORY_FILE


class Stopwatch(Clock):
    """A clock that a test sets."""

    def __init__(self, *readings: float):
        self.readings = list(readings)

    def spent(self) -> float:
        return self.readings.pop(0)


def test_a_budget_of_seconds_ends_before_the_first_step_that_would_begin_after_it():
    assert list(steps_of_budget(0, 1, 10.0, Stopwatch(4.0, 9.9, 10.0))) == [0, 1, 2]
    assert list(steps_of_budget(5, 1, 10.0, Stopwatch(12.0))) == []


def test_without_seconds_the_number_of_steps_is_the_budget():
    assert list(steps_of_budget(1, 3, None, Stopwatch())) == [1, 2]


def test_under_a_budget_of_seconds_the_schedule_follows_the_time_that_is_spent():
    timed = config(schedule="linear", budget=10.0, learning_rate=1.0)
    assert [learning_rate(timed, 7, spent) for spent in (0.0, 2.5, 10.0, 11.0)] == [1.0, 0.75, 0.0, 0.0]


def test_a_budget_that_is_spent_at_once_still_makes_one_step():
    rows = run(tiny_generator(**NO_DROPOUT), config(steps=5, budget=1e-9))
    assert len(rows) == 1 and rows[0]["seconds"] > 0


def test_seconds_before_an_interruption_count(tmp_path):
    path = tmp_path / "state"
    settings = config(budget=1000.0, checkpoint_every=1)
    with pytest.raises(Killed):
        run(tiny_generator(**NO_DROPOUT), settings, kill_after=2, checkpoint=path, fingerprint="a")
    spent = read_json(path / "2" / HISTORY_FILE)[-1]["seconds"]
    assert 0 < spent < 1000
    over = config(budget=spent, checkpoint_every=1)  # the time before the interruption is all there is
    rows = run(tiny_generator(**NO_DROPOUT), over, checkpoint=path, fingerprint="a")
    assert len(rows) == 2  # the steps before the checkpoint, told again


def test_a_run_whose_budget_is_steps_is_told_no_seconds():
    assert "seconds" not in run(tiny_generator(**NO_DROPOUT), config(steps=1))[0]
