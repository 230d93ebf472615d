"""Flow `ablation-sweep`: every cell of a form as one Prefect task and one DVC experiment.

A cell whose experiment exists is skipped, so that running a sweep again resumes it; within a cell, training goes on
from its last checkpoint. From plain Python: `vapi sweep --noise-ratios 0 0.5 --dry-run`.
"""

import argparse
import base64
import json
import math
import os
import re
import sys
from typing import Any, get_origin
from urllib.parse import urlsplit

from prefect import flow, get_run_logger, task
from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.states import Completed, State
from pydantic import ValidationError

from pipelines import processes
from pipelines.config.params import short_name
from pipelines.config.paths import WORK
from pipelines.flows.cell import cancel_all, hand_out
from pipelines.flows.running import gpu_tags, run_all, run_command, visible_gpus
from pipelines.flows.search import open_search, run_search
from pipelines.messages import one_message
from pipelines.reporting.grid import sweep_run
from pipelines.reporting.sweep_plan import plan_text, size_text
from pipelines.repository.git import experiments
from pipelines.repository.sharing import check_shareable, fetch_experiments
from pipelines.tracking import dashboards
from pipelines.variants.cells import read_scores
from pipelines.variants.sweep import (
    Baseline,
    Experiment,
    command,
    plan_cells,
    plan_upstream,
    read_baseline,
    read_bases,
    setting,
    sweep_name,
)
from pipelines.variants.sweep_form import SweepForm, opening_form
from vapi_core.errors import FileError, VapiError
from vapi_core.scoring.statistics import mean_and_standard_error

FIGURES, SCORES = {"answer": "Which cell is best, and the base as a line."}, "Scores over the grid."
SKIPPED = "Skipped"  # name of the state of a cell that was finished before


@task(retries=1, retry_delay_seconds=2)
def run_experiment(experiment: Experiment, gpus: list[str], shared: bool) -> State:
    """One experiment, unless it exists: here, or if `shared` by a worker. A cell without readable scores has failed."""
    exists = experiment.name in (fetch_experiments([experiment.name]) if shared else experiments())
    if not exists and shared and experiment.cell is not None:
        hand_out(experiment)
        fetch_experiments([experiment.name])
    elif not exists:
        run_command(command(experiment, shared), experiment.name, gpus)
    if experiment.cell is not None:
        read_scores(experiment.name)
    if exists:
        return Completed(name=SKIPPED, message="the experiment exists")
    return Completed(message="the experiment is new")


@flow(name="ablation-sweep")
def ablation_sweep(form: SweepForm, dry_run: bool = False) -> State:
    """Runs VA-π with every combination of noise ratios, regularizers, their weights, rewards and credits, with every
    seed.

    Args:
        form: the grid, or what a search looks through. How many cells that is, and how long they take, is the first of
            the run's artifacts, before anything runs; for the form as it opens, it stands in the deployment's text.
        dry_run: only print the plan and its commands.
    """
    logger = get_run_logger()
    baseline = read_baseline(form.profile)
    planned = plan_cells(form, baseline, {})  # refuses a form before anything runs
    if form.on_workers:
        check_shareable()
    size = size_text(form, baseline, planned)
    create_markdown_artifact(size, key="ablation-sweep-plan", description="What is to come")
    if dry_run:
        logger.info(plan_text(form, baseline))
        return Completed(message=f"{len(planned)} cells planned, none run")
    upstream = plan_upstream(form, baseline)
    gpus = visible_gpus(baseline.profile["device"])
    tags, own = gpu_tags(gpus), gpus if form.processes == 1 else []  # torchrun's processes see all
    shared = run_experiment.with_options(task_run_name=upstream.name, tags=tags)(
        upstream, own, form.on_workers, return_state=True
    )
    if not shared.is_completed():
        raise VapiError(f"{upstream.name}, on which all cells build, did not end well: {shared.message}")
    bases = read_bases(experiments()[upstream.name])
    tags = [] if form.on_workers else tags

    def start(experiment: Experiment) -> Any:
        one = run_experiment.with_options(task_run_name=experiment.name, tags=tags)
        return one.submit(experiment, own, form.on_workers)

    end = cancel_all if form.on_workers else processes.end_all
    if form.search == "optuna":
        states = search_cells(form, baseline, bases, upstream, start, end)
    else:
        states = grid_cells(form, baseline, bases, upstream, start, end)
    failed = [name for name, state in states.items() if not state.is_completed()]
    if failed:
        raise VapiError(f"{len(failed)} of {len(states)} cells did not end well: {', '.join(failed)}")
    return Completed(message=f"{len(states)} cells are finished")


def grid_cells(
    form: SweepForm, baseline: Baseline, bases: dict[str, str], upstream: Experiment, start: Any, end: Any
) -> dict[str, State]:
    """Every cell of the form; their final states."""
    by_name = {cell.name: cell for cell in plan_cells(form, baseline, bases)}
    progress = Progress(list(by_name.values()), main_extractor(baseline))
    profile = baseline.profile["profile"]
    with sweep_run(progress.key, profile, form.model_dump(), by_name, upstream.name) as tracked:

        def finished(name: str, state: State) -> None:
            progress.finished(name, state)
            tracked.update(progress.ended)

        graph: dict[str, list[str]] = dict.fromkeys(by_name, [])
        states = run_all(graph, lambda name, _: start(by_name[name]), form.parallelism, finished, end)
        tracked.conclude(profile)
    progress.conclude(baseline.profile)
    return states


def search_cells(
    form: SweepForm, baseline: Baseline, bases: dict[str, str], upstream: Experiment, start: Any, end: Any
) -> dict[str, State]:
    """The cells that a search tries, those of its earlier runs included; their final states."""
    profile = baseline.profile["profile"]
    with open_search(form, baseline, bases) as search:
        earlier = search.earlier()
        budget = max(form.cells, len(earlier))
        progress = Progress([], main_extractor(baseline), search.name, budget)
        with sweep_run(search.name, profile, form.model_dump(), [], upstream.name, budget) as tracked:

            def ended(cell: Experiment, scored: Experiment, state: State) -> None:
                tracked.names.append(scored.name)
                progress.finished(cell.name, state, scored.name)
                tracked.update(progress.ended)

            states: dict[str, State] = {}
            for cell, scored in earlier:
                progress.begin(cell)
                states[cell.name] = Completed(name=SKIPPED, message="the search has it")
                ended(cell, scored, states[cell.name])
            states |= run_search(search, start, progress.begin, ended, end)
            tracked.conclude(profile)
    progress.conclude(baseline.profile)
    if len(states) < budget:
        get_run_logger().warning("The form's ranges have no more than %d cells, all of which were tried.", len(states))
    return states


class Progress:
    """The sweep's artifacts: its grid as a table and how much is done, renewed as cells end; then figures and links.

    A search has a name and a number of cells before it has cells, which begin one by one. The scores of the main
    extractor come first.
    """

    def __init__(self, cells: list[Experiment], main: str, search: str | None = None, budget: int | None = None):
        self.key, self._main = search or sweep_name(cells), main
        self._rows = {cell.name: row_of(cell) for cell in cells}
        self._total = len(cells) if budget is None else budget
        bar, told = f"{self.key}-progress", f"{self._total} cells"
        self._bar: Any = create_progress_artifact(0.0, key=bar, description=told)
        self._table: Any = None
        self.ended = 0
        self._show()

    def begin(self, cell: Experiment) -> None:
        self._rows[cell.name] = row_of(cell) | {"state": "running"}
        self._show()

    def finished(self, name: str, state: State, scored: str | None = None) -> None:
        """A cell has ended. `scored`: the experiment of its scores, where a search has pruned it another one."""
        self.ended += 1
        row, scored = self._rows[name], scored or name
        row["state"] = "pruned" if state.is_completed() and scored != name else str(state.name).lower()
        if state.is_completed():
            try:
                row |= scores_row(read_scores(scored), self._main)
            except FileError as error:  # the experiment has been removed since its task read it
                row["problem"] = str(error)
        else:
            row["problem"] = (state.message or "no message").strip().splitlines()[-1]
        update_progress_artifact(self._bar, 100 * self.ended / self._total)
        self._show()

    def conclude(self, profile: dict[str, Any]) -> None:
        """The figures that `publish` drew, and links to the runs in MLflow if that is a server."""
        for path in sorted((WORK / "sweeps" / self.key).glob("*.png")):
            image = base64.b64encode(path.read_bytes()).decode()
            key = re.sub("[^a-z0-9]+", "-", f"{self.key}-{path.stem}")
            create_image_artifact(
                f"data:image/png;base64,{image}", key=key, description=f"{FIGURES.get(path.stem, SCORES)} In {path}"
            )
        server = os.environ.get("MLFLOW_TRACKING_URI", "")
        if not server.startswith("http"):
            get_run_logger().info("No links to MLflow, which is no server here: MLFLOW_TRACKING_URI names none.")
            return
        address = urlsplit(server)  # without a password: Prefect keeps the links
        server = address._replace(netloc=address.netloc.rpartition("@")[2]).geturl().rstrip("/")
        boards = dashboards.dashboards_of(profile)
        experiment = dashboards.register(profile["profile"], boards)
        link, told = f"{server}/#/experiments/{experiment}", "All runs of the profile in MLflow, those of stages too."
        create_link_artifact(link, key=f"{self.key}-mlflow", link_text="runs in MLflow", description=told)
        for board in boards:
            link, told = dashboards.url(server, experiment, board), f"A view of MLflow's: {board.key}."
            create_link_artifact(
                link, key=f"{self.key}-{board.key}", link_text=f"dashboard {board.key}", description=told
            )

    def _show(self) -> None:
        names = list(dict.fromkeys(name for row in self._rows.values() for name in row))
        table = [{name: row.get(name, "") for name in names} for row in self._rows.values()]
        told = f"{self.ended} of {self._total} cells ended, {self._total - self.ended} left"
        if self._table is None:
            self._table = create_table_artifact(table, key=self.key, description=told)
        else:
            with get_client(sync_client=True) as client:  # one table, and not one for each cell
                client.update_artifact(self._table, ArtifactUpdate(data=json.dumps(table), description=told))


def row_of(experiment: Experiment) -> dict[str, Any]:
    """The line of a cell in the table, before it has ended."""
    assert experiment.cell is not None and experiment.cell.alignment is not None
    return {"cell": experiment.name, **setting(experiment.cell.alignment), "state": "waiting"}


def main_extractor(baseline: Baseline) -> str:
    """The one that the profile judges by, as in the names of scores."""
    return short_name(baseline.profile["score"]["extractors"][-1])


def scores_row(scores: dict[str, list[float]], main: str) -> dict[str, str]:
    """Scores of a finished cell for the table, those of the main extractor first: mean ± standard error over seeds; of
    one seed the score alone."""
    row = {}
    for name in sorted(scores, key=lambda name: not name.endswith(f"/{main}")):
        mean, error = mean_and_standard_error(scores[name])
        row[name.removeprefix("score/")] = f"{mean:.4g}" if math.isnan(error) else f"{mean:.4g} ± {error:.2g}"
    return row


def parse_form(arguments: list[str]) -> tuple[SweepForm, bool]:
    """The form from command line options of the same names. Raises ValidationError."""
    parser = argparse.ArgumentParser(
        description="Runs a sweep, as a Prefect flow. Without options, the form's defaults."
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and its commands, run nothing")
    for name, field in SweepForm.model_fields.items():
        option = f"--{name.replace('_', '-')}"
        is_list = get_origin(field.annotation) is list
        parser.add_argument(option, nargs="*" if is_list else None, default=argparse.SUPPRESS, help=field.description)
    options = vars(parser.parse_args(arguments))
    dry_run = options.pop("dry_run")
    return opening_form(**options), dry_run


@one_message
def main() -> None:
    try:
        form, dry_run = parse_form(sys.argv[1:])
        if dry_run:
            print(plan_text(form, read_baseline(form.profile)))
        else:
            ablation_sweep(form)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc'])) or 'form'}: {e['msg']}" for e in error.errors()]
        sys.exit("\n".join(f"error: {problem}" for problem in problems))


if __name__ == "__main__":
    sys.exit(main())
