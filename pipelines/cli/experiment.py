"""The subcommands of the experiment of params.yaml, from the files that it needs to its report."""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.app import EXPERIMENT, Device, command, group

PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}  # its options are another parser's
Profile = Annotated[str | None, typer.Argument(help="a file of profiles/, without .yaml (default: params.yaml)")]

assets = group("assets", "The files that a profile needs from elsewhere.", EXPERIMENT)


@command("vapi profile mnist", panel=EXPERIMENT)
def profile(
    name: Annotated[
        str | None, typer.Argument(help="a file of profiles/, without .yaml; without it, all names")
    ] = None,
) -> None:
    """Writes a profile into params.yaml, so that it is what runs."""
    from pipelines.commands import profile

    profile.profile(name)


@command("vapi assets check llamagen-xl-c2i", to=assets)
def check(
    profile: Profile = None,
    anyway: Annotated[bool, typer.Option("--anyway", help="only warn where the disk is too small")] = False,
) -> int:
    """Lists the files: which are there, which are missing, and where to get them; and whether the disk is large enough.

    Exit code 1 if any file is missing, or room on the disk.
    """
    from pipelines.commands import assets

    return assets.check(profile, anyway)


@command("vapi assets fetch janus-pro-1b", "vapi assets fetch llamagen-xl-c2i --yes", to=assets)
def fetch(
    profile: Profile = None,
    yes: Annotated[bool, typer.Option("--yes", help="agree to the licences without being asked")] = False,
) -> int:
    """Downloads what is missing and may be downloaded. Shows each licence and asks first; goes on where it was."""
    from pipelines.commands import fetch

    return fetch.fetch(profile, lambda: yes or typer.confirm("Download these, under these licences?"))


@command(
    "vapi estimate llamagen-xl-c2i --gpu h100",
    "vapi estimate --measure",
    "vapi estimate --beside reports/stages",
    panel=EXPERIMENT,
)
def estimate(
    profile: Profile = None,
    gpu: Annotated[str, typer.Option(help="the machine: cpu, or a GPU")] = "cpu",
    measure: Annotated[
        bool, typer.Option("--measure", help="measure the CPU's rates here, which takes ten seconds")
    ] = False,
    beside: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="compare with what stages measured of themselves")
    ] = None,
) -> None:
    """Says how much time and disk every stage needs, before any work."""
    from pipelines.commands import estimate

    estimate.estimate(profile, gpu, measure, beside)


@command("vapi peaks llamagen-xl-c2i janus-pro-1b --memory 24", panel=EXPERIMENT)
def peaks(
    profiles: Annotated[list[str], typer.Argument(help="files of profiles/, without .yaml")],
    memory: Annotated[float, typer.Option(min=0, help="of the GPU, in GB")] = 80,
) -> None:
    """Computes the peak of memory of every alignment and image set; allocates nothing."""
    from pipelines.commands import peaks

    peaks.peaks(profiles, memory)


@command("vapi plan", panel=EXPERIMENT)
def plan() -> None:
    """Writes the plans of params.yaml, reports/plan.md first, which are committed before the run."""
    from pipelines.commands import plan

    plan.plan()


@command(
    "vapi run",
    "vapi run table@noise score@va-pi",
    "vapi run report -S align.noise_ratio=0.0",
    "vapi run --prefect",
    panel=EXPERIMENT,
)
def run(
    targets: Annotated[list[str] | None, typer.Argument(help="stages of dvc.yaml (default: report)")] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set-param", "-S", metavar="NAME=VALUE", help="a DVC experiment with it")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="name of the DVC experiment; with it one is run, even without -S")
    ] = None,
    prefect: Annotated[bool, typer.Option("--prefect", help="each stage as a task of a Prefect flow")] = False,
    parallelism: Annotated[int, typer.Option(min=1, help="with --prefect: stages at the same time")] = 2,
) -> int:
    """Brings stages up to date, and all that they need. What is up to date is not run again."""
    from pipelines.commands import run

    return run.run(targets or ["report"], change or [], name, parallelism if prefect else None)


@command("vapi report", "vapi report noise", "vapi report --readme", panel=EXPERIMENT)
def report(
    table: Annotated[str | None, typer.Argument(help="a table of params.yaml (default: the report)")] = None,
    readme: Annotated[bool, typer.Option("--readme", help="fill README's table of results from it")] = False,
) -> int:
    """Makes the page of a table from the scores that are there; trains and draws nothing."""
    from pipelines.commands import run

    return run.report(table, readme)


@command("vapi page", "vapi page report.html --device cpu", "vapi page --sweep sweep-1a2b3c4d", panel=EXPERIMENT)
def page(
    file: Annotated[
        Path | None, typer.Argument(help="what to write (default: reports/report.html, .work/sweeps/NAME/sweep.html)")
    ] = None,
    device: Device = "auto",
    sweep: Annotated[str | None, typer.Option(metavar="NAME", help="of a sweep that has ended, instead")] = None,
) -> None:
    """Writes the report, or a sweep, as one HTML file for a browser, with its samples to look through."""
    from pipelines.commands import page

    page.page(file, device, sweep)


@command("vapi plots", "vapi plots reports/curves/generator.csv --out curves", panel=EXPERIMENT)
def plots(
    targets: Annotated[list[str] | None, typer.Argument(help="files of plots (default: all)")] = None,
    out: Annotated[Path, typer.Option(help="folder of the page")] = Path("dvc_plots"),
) -> int:
    """Writes DVC's plots as a page that needs no network: the curves and figures of all stages."""
    from pipelines.commands import plots

    return plots.plots(targets or [], out)


@command(
    "vapi sweep --noise-ratios 0 0.25 0.5 --regularizers ce kl --seeds 4 5 6 --dry-run",
    "vapi sweep -- --help",
    panel=EXPERIMENT,
    context_settings=PASSED_ON,
)
def sweep(context: typer.Context) -> int:
    """Runs a grid of alignments, one DVC experiment a cell, as a Prefect flow.

    Its options are the fields of the form that `vapi ui` shows; the last example lists them.
    """
    from pipelines.commands import passed_on

    return passed_on.sweep(context.args)


@command("vapi results > grid.csv", "vapi results --from mlflow", panel=EXPERIMENT)
def results(
    cells: Annotated[list[str] | None, typer.Argument(help="only these, by the names of their experiments")] = None,
    source: Annotated[str, typer.Option("--from", help="dvc or mlflow")] = "dvc",
    profile: Annotated[str | None, typer.Option(help="with --from mlflow (default: that of params.yaml)")] = None,
) -> None:
    """Prints the grid of all cells that were run, as CSV."""
    from pipelines.commands import results

    results.results(cells or (), source, profile)


@command("vapi reach --images 256 --variant only-mse", "vapi reach --images 16 --groups 512", panel=EXPERIMENT)
def reach(
    variant: Annotated[str, typer.Option(help="whose reward; its method is va-pi")] = "va-pi",
    images: Annotated[int, typer.Option(min=1, help="of the training; each token of each is exchanged")] = 64,
    groups: Annotated[
        int, typer.Option(min=0, help="of rollouts of an image, an even number: compares the gradients of each credit")
    ] = 0,
    seed: Annotated[int, typer.Option(help="of the draws")] = 0,
    device: Device = "auto",
) -> None:
    """Measures where the reward of a finished run changes when one token does."""
    from pipelines.commands import reach

    reach.reach(variant, images, groups, seed, device)
