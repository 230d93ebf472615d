"""`vapi ui|dashboards|upload|bench`: what runs in the browser, what MLflow is told, and how fast all is."""

import typer

from pipelines.cli.app import SERVERS, command
from pipelines.cli.experiment import PASSED_ON


@command("vapi ui", panel=SERVERS)
def ui() -> int:
    """Starts Prefect, MLflow and a worker: sweeps and tracked runs in the browser, until Ctrl-C."""
    from pipelines.flows import ui

    return ui.main()


@command("vapi dashboards", panel=SERVERS)
def dashboards() -> int:
    """Registers the dashboards of params.yaml's profile in MLflow and prints their addresses."""
    from pipelines.commands import passed_on

    return passed_on.dashboards()


@command("vapi upload", panel=SERVERS)
def upload() -> int:
    """Sends MLflow the metrics that were kept while its server was away."""
    from pipelines.commands import passed_on

    return passed_on.upload()


@command(
    "vapi bench align --profile llamagen-xl-c2i",
    "vapi bench sample --profile mnist --threads 1 --growth",
    "vapi bench -- --help",
    panel=SERVERS,
    context_settings=PASSED_ON,
)
def bench(context: typer.Context) -> int:
    """Measures our schedule beside the authors': align, sample, tokenize, score or pipeline.

    The last example lists its options.
    """
    from pipelines.commands import passed_on

    return passed_on.bench(context.args)
