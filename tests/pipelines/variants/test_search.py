"""A search proposes cells, learns from their scores, prunes, and goes on where it was when it is run again."""

from pathlib import Path

import pytest

from pipelines.config.profiles import read_profile
from pipelines.variants import search
from pipelines.variants.search import Search, finished_before, search_name
from pipelines.variants.sweep import Baseline, is_cell, plan_cells, setting
from pipelines.variants.sweep_form import opening_form
from vapi_core.errors import ParameterError

MNIST = read_profile("mnist", Path(__file__).parents[3])
PARAMS = MNIST | {"tables": [], "variants": {"va-pi": MNIST["variants"]["va-pi"]}}
BASELINE, BASES = Baseline("head", "state", "abc", PARAMS, PARAMS), {"data/generator": "aa.dir"}


@pytest.fixture
def begin(tmp_path):
    """Begins a search, or goes on with it as another process would."""

    def begin(**changes):
        wide = {"noise_ratios": [0, 1], "regularizer_weights": [0.01, 1], "regularizers": ["ce", "kl"], "seeds": [1]}
        form = opening_form(**({"search": "optuna", "cells": 12} | wide | changes))
        return Search(form, BASELINE, BASES, tmp_path / "optuna.db")

    return begin


def setting_of(proposal):
    return setting(proposal.cell.cell.alignment)


def score(proposal):
    """The best cell is of ξ 0.3, β 0.1 and ce."""
    s = setting_of(proposal)
    return abs(s["noise_ratio"] - 0.3) + abs(s["regularizer_weight"] - 0.1) + (s["regularizer"] == "kl")


def run(search):
    """Runs cells to the end of the search, as if each scored at once."""
    proposals = []
    while (proposal := search.propose()) is not None:
        proposals.append(proposal)
        search.finish(proposal, [score(proposal)])
    return proposals


def names(proposals):
    return [proposal.cell.name for proposal in proposals]


def test_what_is_proposed_are_cells_between_the_ends_of_the_lists_as_many_as_the_budget_has(begin):
    found = begin()
    proposals = run(found)
    assert len(set(names(proposals))) == len(found.earlier()) == 12 and all(map(is_cell, names(proposals)))
    settings = list(map(setting_of, proposals))
    assert all(0 <= s["noise_ratio"] <= 1 and 0.01 <= s["regularizer_weight"] <= 1 for s in settings)
    assert {s["regularizer"] for s in settings} == {"ce", "kl"}
    assert all(len(f"{s['noise_ratio']:g}") <= 7 for s in settings)  # it stands in a name


def test_later_cells_are_where_earlier_ones_scored_well(begin):
    scores = list(map(score, run(begin(cells=30))))
    assert sum(scores[-10:]) < 0.6 * sum(scores[:10])
    assert min(scores) < 0.15


def test_a_search_that_was_killed_proposes_what_it_would_have_and_more_cells_extend_it(begin, tmp_path):
    first = begin(cells=9)
    before = []
    for _ in range(6):  # the last of these is by TPE
        before.append(first.propose())
        first.finish(before[-1], [score(before[-1])])
    under_way = first.propose()  # which is never finished
    again = begin(cells=9)
    assert [cell.name for cell, _ in again.earlier()] == names(before)
    rest = run(again)
    assert names(rest)[0] == under_way.cell.name
    undisturbed = Search(again.form, BASELINE, BASES, tmp_path / "another.db")
    assert names([*before, *rest]) == names(run(undisturbed))
    assert run(begin(cells=9)) == [] and len(run(begin(cells=11))) == 2


def test_its_identity_is_that_of_its_space_its_seed_and_what_it_builds_on_and_not_its_budget():
    def name(bases=BASES, **changes):
        return search_name(opening_form(search="optuna", **changes), BASELINE, bases)

    assert name() == name(cells=3) == name(parallelism=4) == name(on_workers=True)
    others = [{"noise_ratios": [0.5]}, {"search_seed": 1}, {"seeds": [9]}, {"bases": {}}, {"steps": 3}]
    assert len({name(), *(name(**change) for change in others)}) == 1 + len(others)


def test_where_there_are_few_settings_each_is_run_once_and_the_search_ends(begin):
    few = {"noise_ratios": [0.5], "regularizer_weights": [0.1], "regularizers": ["ce", "kl", "none"]}
    found = begin(**few, credits=["image", "token"])
    assert sorted(names(run(found))) == sorted(
        cell.name for cell in plan_cells(found.form, BASELINE, BASES)
    )  # six of a budget of twelve


def test_a_cell_that_would_have_nothing_to_learn_from_is_not_proposed(begin):
    settings = map(setting_of, run(begin(reward_terms=["prior", "mse"], regularizers=["kl", "ce"])))
    prior = [s for s in settings if s["reward"] == "prior"]
    assert prior and {s["regularizer"] for s in prior} == {"ce"}
    settings = map(setting_of, run(begin(reward_terms=["prior", "mse"], regularizers=["none"])))
    assert {(s["reward"], s["regularizer_weight"]) for s in settings} == {("mse", 0.0)}
    with pytest.raises(ParameterError, match="reward_terms"):
        begin(reward_terms=["prior"], regularizers=["kl"])


def test_a_cell_with_a_bad_first_seed_is_pruned_and_counts(begin):
    found = begin(seeds=[4, 5, 6], cells=8)
    for _ in range(search.STARTUP):
        proposal = found.propose()
        assert not found.prune(proposal, 2.0)  # there is nothing yet to compare it with
        found.finish(proposal, [2.0, 2.1, 2.2])
    good, bad = found.propose(), found.propose()
    assert not found.prune(good, 1.9) and found.prune(bad, 2.3)
    found.finish(good, [1.9, 1.9, 1.9])
    scored = [experiment.name for _, experiment in found.earlier()]
    assert scored[-2:] == [good.cell.name, bad.first.name]
    assert found.propose() is not None and found.propose() is None


def test_the_first_seed_alone_is_the_cell_of_a_sweep_with_that_seed(begin):
    proposal = begin(seeds=[4, 5, 6]).propose()
    s = setting_of(proposal)
    one = {"noise_ratios": [s["noise_ratio"]], "regularizer_weights": [s["regularizer_weight"]]}
    (cell,) = plan_cells(opening_form(**one, regularizers=[s["regularizer"]], seeds=[4]), BASELINE, BASES)
    assert proposal.first.name == cell.name != proposal.cell.name
    assert proposal.first.overrides["align.seeds"] == [4] and proposal.first.base == proposal.cell.base
    assert begin(seeds=[4, 5]).propose().first is None  # where it would not pay


@pytest.mark.parametrize("scores", [[], [float("nan")]])
def test_a_cell_that_failed_takes_its_part_of_the_budget_and_is_the_first_when_the_search_is_run_again(begin, scores):
    found = begin(cells=2)
    failed, other = found.propose(), found.propose()
    found.finish(failed, scores)
    found.finish(other, [1.0])
    assert found.propose() is None and len(found.earlier()) == 1
    assert names(run(begin(cells=2))) == [failed.cell.name]


def test_how_many_cells_are_finished_is_told_without_a_trace(begin, tmp_path):
    assert finished_before("search-0", tmp_path / "none.db") == 0 and not (tmp_path / "none.db").exists()
    found = begin(cells=3)
    run(found)
    assert [finished_before(name, tmp_path / "optuna.db") for name in (found.name, "search-0")] == [3, 0]
