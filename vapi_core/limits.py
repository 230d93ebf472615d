"""What a hyper-parameter may be, said once beside its field: `noise_ratio: Ratio = 0.0`.

To torch and to readers these are plain numbers. Whoever checks values that come from outside, as `pipelines.config`
does with params.yaml, reads the bounds off the types; pydantic does so by itself, and nothing here imports it.
"""

from dataclasses import dataclass
from typing import Annotated, Any


class Checked:
    """Base of dataclasses that params.yaml fills: pydantic then casts nothing and refuses unknown keys."""

    __pydantic_config__ = {"extra": "forbid", "strict": True, "allow_inf_nan": False}


@dataclass(frozen=True)
class Bounds:
    """An interval of numbers; None is no bound."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def problem(self, value: float) -> str | None:
        """What is wrong with a value, None if nothing is."""
        if self.least is not None and not value >= self.least:
            return f"must be at least {self.least:g}"
        if self.above is not None and not value > self.above:
            return f"must be above {self.above:g}"
        if self.most is not None and not value <= self.most:
            return f"must be at most {self.most:g}"
        if self.below is not None and not value < self.below:
            return f"must be below {self.below:g}"
        return None

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return _checking(self, source, handler)


@dataclass(frozen=True)
class Length:
    """How many entries a list may have."""

    least: int = 0
    most: int = 1000

    def problem(self, values: Any) -> str | None:
        """What is wrong with a list, None if nothing is."""
        if len(values) < self.least:
            return f"needs at least {self.least} of them"
        return f"has more than {self.most} entries" if len(values) > self.most else None

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return _checking(self, source, handler)


def _checking(limit: Bounds | Length, source: Any, handler: Any) -> Any:
    """The schema of pydantic that checks a type, then a limit."""
    from pydantic_core import PydanticCustomError, core_schema

    def check(value: Any) -> Any:
        if problem := limit.problem(value):
            raise PydanticCustomError("limit", problem)  # type: ignore[type-var]
        return value

    return core_schema.no_info_after_validator_function(check, handler(source))


MOST_COUNT = 2**31  # of anything that is counted: steps, images, channels
MOST_WEIGHT = 1e6  # beyond it float32 losses overflow

Count = Annotated[int, Bounds(least=1, most=MOST_COUNT)]
CountOrNone = Annotated[int, Bounds(least=0, most=MOST_COUNT)]  # 0: none
Ratio = Annotated[float, Bounds(least=0, most=1)]
Decay = Annotated[float, Bounds(least=0, below=1)]  # of a moving average
Weight = Annotated[float, Bounds(least=0, most=MOST_WEIGHT)]  # of a term; 0 leaves it out
Rate = Annotated[float, Bounds(above=0, most=1e3)]  # a learning rate; what is far too high must still be triable
Temperature = Annotated[float, Bounds(above=0, most=100)]
Guidance = Annotated[float, Bounds(least=1, most=1000)]
Seed = Annotated[int, Bounds(least=0, most=2**63 - 1)]
