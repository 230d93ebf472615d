"""The cells of a search, as tasks: each is begun where those before scored well, and a pruned one ends early."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from prefect.futures import PrefectFuture, as_completed
from prefect.states import State

from pipelines.processes import only_one
from pipelines.repository.git import experiments
from pipelines.variants.cells import read_cell
from pipelines.variants.search import Proposal, Search, main_scores, search_name
from pipelines.variants.sweep import Baseline, Experiment
from pipelines.variants.sweep_form import SweepForm
from vapi_core.errors import FileError


@contextmanager
def open_search(form: SweepForm, baseline: Baseline, bases: dict[str, str]) -> Iterator[Search]:
    """A search that no other process has, for the duration of a block; waits for one that has it."""
    with only_one(search_name(form, baseline, bases)):
        yield Search(form, baseline, bases)


def run_search(
    search: Search,
    submit: Callable[[Experiment], PrefectFuture],
    began: Callable[[Experiment], Any],
    ended: Callable[[Experiment, Experiment, State], Any],
    end: Callable[[], Any],
) -> dict[str, State]:
    """Runs cells until the budget of a search is used up, as many at a time as its form says.

    Args:
        submit: starts an experiment.
        began: told of every cell before it runs.
        ended: told of every cell that has ended, with the experiment that has its scores: of a pruned one that of its
            first seed.
        end: ends what runs, where this process is to end.

    Returns:
        The final state of every cell that was run now.
    """
    running = dict[PrefectFuture, tuple[Proposal, Experiment]]()
    states: dict[str, State] = {}
    try:
        while True:
            while len(running) < search.form.parallelism and (proposal := search.propose()) is not None:
                began(proposal.cell)
                experiment = proposal.first or proposal.cell
                if proposal.cell.name in experiments():  # by another sweep, say
                    experiment = proposal.cell
                running[submit(experiment)] = proposal, experiment
            if not running:
                return states
            future = next(iter(as_completed(list(running))))
            future.wait()  # takes over the final state
            proposal, experiment = running.pop(future)
            scores = scores_of(experiment, future.state)
            if scores and experiment is proposal.first and not search.prune(proposal, scores[0]):
                running[submit(proposal.cell)] = proposal, proposal.cell
                continue
            if not scores or experiment is proposal.cell:
                search.finish(proposal, scores)
            states[proposal.cell.name] = future.state
            ended(proposal.cell, experiment, future.state)
    except BaseException:  # cancelled, or Ctrl-C
        end()
        raise


def scores_of(experiment: Experiment, state: State) -> list[float]:
    """What a search goes by, of each seed; nothing of an experiment that has failed, or was removed meanwhile."""
    try:
        return main_scores(read_cell(experiment.name)) if state.is_completed() else []
    except FileError:
        return []
