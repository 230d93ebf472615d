"""`vapi ui|worker|node|dashboards|upload|bench`: servers and helpers of other machines, MLflow, and how fast all is."""

from typing import Annotated

import typer

from pipelines.cli.app import SERVERS, command
from pipelines.cli.experiment import PASSED_ON


@command("vapi ui", "vapi ui --host 10.0.0.5", panel=SERVERS)
def ui(
    host: Annotated[str, typer.Option(help="the address of this machine at which the servers listen")] = "127.0.0.1",
) -> int:
    """Starts Prefect, MLflow and a worker: sweeps and tracked runs in the browser, until Ctrl-C."""
    from pipelines.flows import ui

    return ui.main(host)


@command("vapi worker", "vapi worker --limit 2 --idle-minutes 10", panel=SERVERS)
def worker(
    limit: Annotated[
        int | None, typer.Option(help="cells at a time; default: as many as there are GPUs, or one")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="name of this worker, which no other has; default: machine and process")
    ] = None,
    idle_minutes: Annotated[float | None, typer.Option(help="end when there has been no cell for so long")] = None,
) -> int:
    """Runs cells of sweeps of any machine, until Ctrl-C. PREFECT_API_URL and MLFLOW_TRACKING_URI name the servers."""
    from pipelines.flows import worker

    return worker.main(limit, name, idle_minutes)


@command("vapi node", panel=SERVERS)
def node() -> None:
    """Runs this machine's part of every stage that another one starts with launch.nodes above 1, until Ctrl-C.

    VAPI_RENDEZVOUS names the other one, the first node, and a free port there, e.g. node1:29500. Both need the same
    folder.
    """
    from pipelines.commands import node

    node.node()


@command("vapi dashboards", panel=SERVERS)
def dashboards() -> int:
    """Registers the dashboards of params.yaml's profile in MLflow and prints their addresses."""
    from pipelines.tracking import dashboards

    return dashboards.main()


@command("vapi upload", panel=SERVERS)
def upload() -> int:
    """Sends MLflow the metrics that were kept while its server was away."""
    from pipelines.tracking.__main__ import send_kept

    return send_kept()


@command(
    "vapi bench align --profile llamagen-xl-c2i",
    "vapi bench sample --profile mnist --threads 1 --growth",
    "vapi bench -- --help",
    panel=SERVERS,
    context_settings=PASSED_ON,
)
def bench(context: typer.Context) -> int:
    """Measures our schedule beside the authors': align, sample, tokenize, score or pipeline; `gpu` runs all on a GPU.

    The last example lists its options.
    """
    from pipelines.commands import passed_on

    return passed_on.bench(context.args)
