"""How long a training goes on: a number of steps, or seconds of wall time, so that methods compare at equal time.

Under a budget of seconds every step's metrics hold the seconds spent so far, those before an interruption included.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence


class Clock:
    """Seconds spent on a training whose steps so far left `history`.

    Several processes `agree` on each reading, or one would make a step that another does not.
    """

    def __init__(self, history: Sequence[dict[str, float]], agree: Callable[[float], float] = float):
        self._before = history[-1].get("seconds", 0.0) if history else 0.0
        self._started = time.monotonic()
        self._agree = agree

    def spent(self) -> float:
        return self._agree(self._before + time.monotonic() - self._started)


def steps_of_budget(first: int, steps: int, seconds: float | None, clock: Clock) -> Iterator[int]:
    """The steps from `first` on: to `steps`, or, if there is a budget of seconds, to the last that begins within it.

    Such a budget always allows step 0.
    """
    if seconds is None:
        yield from range(first, steps)
        return
    for step in itertools.count(first):
        if step > 0 and clock.spent() >= seconds:
            return
        yield step
