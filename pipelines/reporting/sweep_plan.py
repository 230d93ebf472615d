"""What a sweep is going to do, before anything runs: its cells, their commands, and how long they take here."""

import shlex

from pipelines.config.loading import check_params
from pipelines.estimates.estimate import sweep_seconds
from pipelines.estimates.rates import here
from pipelines.reporting.estimates import sweep_line
from pipelines.repository.git import experiments
from pipelines.variants.search import finished_before, search_name, search_text
from pipelines.variants.sweep import (
    Baseline,
    Experiment,
    command,
    plan_cells,
    plan_upstream,
    read_bases,
    sweep_name,
)
from pipelines.variants.sweep_form import SweepForm


def plan_text(form: SweepForm, baseline: Baseline) -> str:
    """The plan of a sweep for people: every experiment and the command that runs it; of a search what it would do."""
    existing, upstream = experiments(), plan_upstream(form, baseline)
    made = existing.get(upstream.name)
    bases = read_bases(made) if made else {}
    cells = plan_cells(form, baseline, bases)
    if form.search == "optuna":
        name = search_name(form, baseline, bases)
        lines = [f"{name}: {search_text(form, finished_before(name))}" if made else search_text(form)]
        shown = [upstream]
    elif made:
        finished = sum(cell.name in existing for cell in cells)
        lines = [f"{sweep_name(cells)}: {len(cells)} cells, {finished} of them finished before"]
        shown = [upstream, *cells]
    else:
        lines = [f"{len(cells)} cells; their names end otherwise when what they build on is made, by {upstream.name}"]
        shown = [upstream, *cells]
    for cell in shown:
        note = " (finished before)" if cell.name in existing else ""
        lines += ["", f"{cell.name}{note}", f"  {shlex.join(command(cell, form.on_workers))}"]
    return "\n".join([*lines, "", time_text(form, baseline, cells)])


def time_text(form: SweepForm, baseline: Baseline, cells: list[Experiment]) -> str:
    """How long the cells take on this machine, by `pipelines.estimates`."""
    if (rates := here()) is None:
        return "how long it takes is not known for this GPU; `vapi estimate --gpu` knows some."
    params = check_params(baseline.profile)
    launch = params.launch.model_copy(update={"nodes": 1, "processes": form.processes})
    params = params.model_copy(update={"threads": form.threads, "launch": launch})
    variants = [cell.cell for cell in cells if cell.cell is not None]
    seconds = sweep_seconds(params, variants, rates)
    if form.search == "optuna":  # whose cells are like those of the grid; a pruned one takes less
        seconds = [sum(seconds) / len(seconds)] * form.cells
    return sweep_line(seconds, form.parallelism, rates)


def size_text(form: SweepForm, baseline: Baseline, cells: list[Experiment]) -> str:
    """How many cells a form has and how long they take, in a few lines."""
    count = search_text(form) if form.search == "optuna" else f"{len(cells)} cells."
    return f"{count} Seeds of a cell: {len(form.seeds)}.\n\n{time_text(form, baseline, cells)}"
