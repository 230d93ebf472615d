"""A search: which cells of a sweep a budget goes to, as Optuna's TPE proposes them from the scores of those before.

The form's lists span its space. ξ and β are numbers between the smallest and the largest of their lists, β on a
logarithmic scale if all are above 0; kinds of the regularizer, rewards and credits are the lists' entries. A proposal
is a cell like any other, with its name. What a search minimises is the FID of the main extractor, mean over seeds.

With three seeds or more a cell is run with the first one alone before. If its score is worse than the median of the
finished cells' first seeds, the cell is pruned (Optuna's MedianPruner). Otherwise it is run with all seeds; the first
is trained again then, since DVC makes the seeds of a cell in one stage. So pruning pays where it ends more than one
cell in as many as there are seeds.

A study of Optuna remembers all this, so that a search that is run again goes on. The draws of a proposal are named by
(seed of the search, cells before it), whatever happened between: one cell at a time, a search that was killed proposes
what it would have. TPE: Bergstra et al. 2011, Algorithms for hyper-parameter optimization.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import BaseTrial, FixedTrial, Trial, TrialState

from pipelines.config.paths import WORK
from pipelines.variants.cells import FinishedCell
from pipelines.variants.sweep import Baseline, Experiment, identity, plan_cells
from pipelines.variants.sweep_form import PRIOR_ONLY, SweepForm
from vapi_core.errors import ParameterError
from vapi_core.randomness import derive_seed

# Its own file: MLflow and Prefect version their databases by Alembic's one table, as Optuna does, and it refuses theirs
STORE = WORK / "optuna.db"
SECONDS = 60  # that a process waits for another one that writes there
STARTUP = 5  # cells that are drawn at random before TPE has a say, and that are finished before any is pruned
PRUNED_FROM = 3  # seeds: with two the first one, trained twice, would cost as much as pruning saves
ATTEMPTS = 100  # at a cell that is not there yet
DIGITS = 3  # of ξ and β, which stand in names
CELL = "cell"  # attribute of a trial: name of its experiment
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
FIRST = 1  # step of the first seed's score, as a trial reports it


@dataclass(frozen=True)
class Proposal:
    """A cell that a search wants to know the score of."""

    trial: Trial
    cell: Experiment
    first: Experiment | None  # the cell with the first seed alone, to be run before; None: there is no pruning


class Search:
    """The study of a form on what its cells build on. One process at a time may have it.

    Raises:
        ParameterError: the form has no cell.
    """

    def __init__(self, form: SweepForm, baseline: Baseline, bases: dict[str, str], store: Path = STORE):
        plan_cells(form, baseline, bases)  # refuses what no search could run
        self.form, self.name = form, search_name(form, baseline, bases)
        self._baseline, self._bases = baseline, bases
        store.parent.mkdir(parents=True, exist_ok=True)
        pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP)
        self._study = optuna.create_study(
            study_name=self.name, storage=storage(store), direction="minimize", pruner=pruner, load_if_exists=True
        )
        self._taken = finished_cells(self._study)
        self._resume()

    def earlier(self) -> list[tuple[Experiment, Experiment]]:
        """The cells of earlier runs that have come to an end, each with the experiment of its scores: of a pruned one
        that of its first seed."""
        found = []
        for trial in self._study.get_trials(deepcopy=False, states=ENDED):
            cell, first = self._cells_of(FixedTrial(trial.params))
            assert cell is not None
            found.append((cell, first if first is not None and trial.state == TrialState.PRUNED else cell))
        return found

    def propose(self) -> Proposal | None:
        """The next cell to run; None if the budget is used up, or nothing new is found in the form's ranges."""
        for attempt in range(ATTEMPTS if len(self._taken) < self.form.cells else 0):
            seed = derive_seed(self.form.search_seed, "search", len(self._taken), attempt) % 2**32
            trial = self._ask(seed, again=attempt > 0)
            cell, first = self._cells_of(trial)
            if cell is None or cell.name in self._taken:
                self._study.tell(trial, state=TrialState.FAIL)  # TPE does not look at it, and it counts once
                continue
            trial.set_user_attr(CELL, cell.name)
            self._taken.add(cell.name)
            return Proposal(trial, cell, first)
        return None

    def prune(self, proposal: Proposal, score: float) -> bool:
        """Tells the score of the first seed; whether that is the end of the cell."""
        proposal.trial.report(score, FIRST)
        if not proposal.trial.should_prune():
            return False
        self._study.tell(proposal.trial, state=TrialState.PRUNED)
        return True

    def finish(self, proposal: Proposal, scores: Sequence[float]) -> None:
        """Tells the scores of a cell's seeds, none of one that has failed: it is run again when the search is."""
        mean = sum(scores) / len(scores) if scores else math.nan
        if not math.isfinite(mean):
            self._study.tell(proposal.trial, state=TrialState.FAIL)
            return
        if FIRST not in self._study.trials[proposal.trial.number].intermediate_values:
            proposal.trial.report(scores[0], FIRST)
        self._study.tell(proposal.trial, mean)

    def _ask(self, seed: int, again: bool) -> Trial:
        """A new trial. Where TPE has come upon a cell that is there, chance finds one that is not."""
        random = optuna.samplers.RandomSampler(seed=seed)
        tpe = optuna.samplers.TPESampler(n_startup_trials=STARTUP, seed=seed)
        self._study.sampler = random if again else tpe
        return self._study.ask()

    def _cells_of(self, trial: BaseTrial) -> tuple[Experiment | None, Experiment | None]:
        """The cell of a trial, None where it would have nothing to learn from; and with its first seed alone."""
        one, seeds = setting_of(trial, self.form), self.form.seeds
        try:
            (cell,) = plan_cells(one, self._baseline, self._bases)
        except ParameterError:
            return None, None
        if len(seeds) < PRUNED_FROM:
            return cell, None
        (first,) = plan_cells(one, self._baseline, self._bases, seeds[:1])
        return cell, first

    def _resume(self) -> None:
        """Has the cells proposed first that were proposed before and came to nothing: it was killed, or they failed."""
        unfinished: dict[str, dict[str, Any]] = {}
        for trial in self._study.trials:
            if trial.state == TrialState.RUNNING:
                self._study.tell(trial.number, state=TrialState.FAIL)
            if (name := trial.user_attrs.get(CELL)) is not None and name not in self._taken:
                unfinished[name] = trial.params
        for params in unfinished.values():
            self._study.enqueue_trial(params)


def search_name(form: SweepForm, baseline: Baseline, bases: dict[str, str]) -> str:
    """Identity of a search: of its space, its seed, and all that its cells come from; not of its budget."""
    space = form.model_dump(exclude={"cells", "parallelism", "on_workers"})
    return f"search-{identity([space, baseline.revision, baseline.profile, bases])}"


def storage(store: Path) -> optuna.storages.RDBStorage:
    """All studies of this folder."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # the flow tells what happens
    url = f"sqlite:///{store.resolve()}"
    return optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": SECONDS}})


def finished_cells(study: optuna.Study) -> set[str]:
    """Names of the cells that a study knows the score of, or has pruned."""
    return {trial.user_attrs[CELL] for trial in study.get_trials(deepcopy=False, states=ENDED)}


def finished_before(name: str, store: Path = STORE) -> int:
    """How many cells of a search have come to an end; changes nothing."""
    if not store.is_file():
        return 0
    try:
        return len(finished_cells(optuna.load_study(study_name=name, storage=storage(store))))
    except KeyError:  # Optuna's of a study that there is not
        return 0


def search_text(form: SweepForm, finished: int = 0) -> str:
    """What a search will do, for people."""
    seeds, spans = form.seeds, []
    for name, values in (("ξ", form.noise_ratios), ("β", form.regularizer_weights)):
        low, high = min(values), max(values)
        spans.append(f"{name} {low:g}" if low == high else f"{name} {low:g} to {high:g}")
    lists = (form.regularizers, form.reward_terms, form.credits)
    space = ", ".join([*spans, *(" or ".join(values) for values in lists)])
    pruned = f" A cell that does badly with seed {seeds[0]} alone is pruned." if len(seeds) >= PRUNED_FROM else ""
    before = f", {finished} of them finished before" if finished else ""
    return (
        f"a search of {form.cells} cells{before}: {space}. The first {STARTUP} are drawn at random, the others by TPE, "
        f"for a small FID.{pruned}"
    )


def setting_of(trial: BaseTrial, form: SweepForm) -> SweepForm:
    """The form of one cell, as a trial has it. What would not matter is not asked for: β of no regularizer, say."""
    rewards = [reward for reward in form.reward_terms if reward != PRIOR_ONLY or "ce" in form.regularizers]
    reward = trial.suggest_categorical("reward", rewards)
    alone = reward == PRIOR_ONLY
    kind = "ce" if alone else trial.suggest_categorical("regularizer", form.regularizers)
    credit = "image" if alone else trial.suggest_categorical("credit", form.credits)
    weight = 0.0 if kind == "none" else number(trial, "regularizer_weight", form.regularizer_weights, log=True)
    one = {
        "noise_ratios": [number(trial, "noise_ratio", form.noise_ratios)],
        "regularizers": [kind],
        "regularizer_weights": [weight],
        "reward_terms": [reward],
        "credits": [credit],
    }
    return form.model_copy(update=one)


def number(trial: BaseTrial, name: str, values: Sequence[float], log: bool = False) -> float:
    """A number between the smallest and the largest of these, with few digits. `log`: if all are above 0."""
    low, high = min(values), max(values)
    found = trial.suggest_float(name, low, high, log=log and low > 0)
    return min(max(float(f"{found:.{DIGITS}g}"), low), high)


def main_scores(cell: FinishedCell) -> list[float]:
    """What a search judges a cell by: the FID of the main extractor, of each seed in their order; smaller is better."""
    return [scores[f"score/fid/{cell.main}"] for scores in cell.scores.values()]
