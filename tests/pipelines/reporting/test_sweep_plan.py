"""What a form comes to is told before anything runs."""

from pipelines.config.profiles import read_profile
from pipelines.flows import opening
from pipelines.reporting.sweep_plan import size_text
from pipelines.variants.sweep import Baseline, plan_cells
from pipelines.variants.sweep_form import opening_form
from tests.pipelines.reporting.workspace import ROOT

PARAMS = read_profile("mnist", ROOT)
BASELINE = Baseline("head", "state", "abc", PARAMS, PARAMS)


def told(**changes):
    form = opening_form(noise_ratios=[0.0, 0.5], seeds=[4], **changes)
    return size_text(form, BASELINE, plan_cells(form, BASELINE, {}))


def test_a_grid_tells_its_cells_and_their_time_and_a_search_its_budget_and_that_of_as_many():
    grid, search = told(), told(search="optuna", cells=7)
    assert grid.startswith("2 cells. Seeds of a cell: 1.\n\nabout ") and ": 2 x " in grid
    assert search.startswith("a search of 7 cells: ξ 0 to 0.5, β 0.1, ce,") and ": 7 x " in search


def test_where_the_size_cannot_be_told_the_deployment_says_why(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # which is no repository
    assert opening.opened()["size"].startswith("its size is not known: ")
