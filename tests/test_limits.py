"""Bounds stand beside a field, and are what params.yaml is checked by."""

import json
from dataclasses import dataclass
from typing import Annotated

import pytest
from pydantic import TypeAdapter, ValidationError

from vapi_core.limits import Bounds, Checked, Length, Ratio


@pytest.mark.parametrize(
    ("bounds", "value", "problem"),
    [
        (Bounds(least=0), -1, "must be at least 0"),
        (Bounds(above=0), 0, "must be above 0"),
        (Bounds(most=1), 1.5, "must be at most 1"),
        (Bounds(below=1), 1, "must be below 1"),
        (Bounds(least=0, most=1), float("nan"), "must be at least 0"),
        (Bounds(least=0, most=1), 0, None),
        (Bounds(least=0, most=1), 1, None),
        (Bounds(), 1e300, None),
        (Length(least=1), (), "needs at least 1 of them"),
        (Length(most=2), (1, 2, 3), "has more than 2 entries"),
        (Length(least=1, most=2), (1, 2), None),
    ],
)
def test_a_value_beyond_its_bounds_is_told_by_the_bound_that_it_breaks(bounds, value, problem):
    assert bounds.problem(value) == problem


@dataclass(frozen=True)
class Settings(Checked):
    ratio: Ratio = 0.5
    scales: Annotated[tuple[Annotated[float, Bounds(least=1)], ...], Length(least=1)] = (1.0,)
    count: int = 1


def read(content) -> Settings:
    return TypeAdapter(Settings).validate_json(json.dumps(content))


def test_a_dataclass_is_its_own_schema():
    assert read({}) == Settings()
    assert read({"ratio": 1, "scales": [1.0, 2.5]}) == Settings(1.0, (1.0, 2.5))


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ({"ratio": 1.5}, ("ratio",)),
        ({"ratio": "0.5"}, ("ratio",)),
        ({"scales": []}, ("scales",)),
        ({"scales": [1.0, 0.5]}, ("scales", 1)),
        ({"count": True}, ("count",)),
        ({"count": 1.0}, ("count",)),
        ({"counts": 1}, ("counts",)),
        ({"ratio": float("inf")}, ("ratio",)),
    ],
)
def test_nothing_is_cast_and_nothing_is_ignored(content, place):
    with pytest.raises(ValidationError) as refused:
        read(content)
    assert [error["loc"] for error in refused.value.errors()] == [place]
