"""A worker for the cells of sweeps: `vapi worker` in a clone of the repository, on any machine.

It takes as many cells at a time as it sees GPUs, each of which has one; without GPUs one. The environment names the
servers: PREFECT_API_URL, and MLFLOW_TRACKING_URI as a server too. Whatever ends it ends its cells, which then go to
others.
"""

import os
import socket
import sys
import threading
import time

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import StateType
from prefect.settings import PREFECT_API_URL

from pipelines.flows.cell import POOL
from pipelines.flows.running import environment, visible_gpus
from pipelines.messages import one_message
from pipelines.processes import Guarded
from pipelines.repository.sharing import check_remotes
from pipelines.tracking.masking import masked
from vapi_core.errors import VapiError

LOOK_SECONDS = 15.0  # between two looks at whether there is a cell
ACTIVE = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]


def worker_command(limit: int, name: str) -> list[str]:
    return ["prefect", "worker", "start", "--pool", POOL, "--type", "process", "--limit", str(limit), "--name", name]


def has_cells() -> bool:
    """Whether any cell waits or runs."""
    active = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=ACTIVE)))
    pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL]))
    with get_client(sync_client=True) as client:
        return bool(client.read_flow_runs(flow_run_filter=active, work_pool_filter=pool, limit=1))


def end_when_idle(worker: Guarded, minutes: float, idle: threading.Event) -> None:
    """Ends a worker when there has been no cell for so long, and tells that it was so."""
    last = time.monotonic()
    while worker.running:
        if has_cells():
            last = time.monotonic()
        elif time.monotonic() - last > 60 * minutes:
            print(f"No cell has come for {minutes:g} minutes: the worker ends.", flush=True)
            idle.set()
            worker.end()
        time.sleep(LOOK_SECONDS)


@one_message
def main(limit: int | None = None, name: str | None = None, idle_minutes: float | None = None) -> int:
    """Runs cells until Ctrl-C.

    Args:
        limit: cells at a time; by default as many as there are GPUs, or one.
        name: unlike that of any other worker; by default that of the machine and of this process.
        idle_minutes: end when there has been no cell for so long.
    """
    if not PREFECT_API_URL.value():
        raise VapiError("PREFECT_API_URL is not set, which names the server whose cells to run.")
    check_remotes()
    env, name = environment(), name or f"{socket.gethostname()}-{os.getpid()}"
    if not env["MLFLOW_TRACKING_URI"].startswith("http"):
        print("warning: MLFLOW_TRACKING_URI names no server: the runs of cells stay in this clone.", file=sys.stderr)
    command = worker_command(limit or max(1, len(visible_gpus("auto"))), name)
    idle = threading.Event()
    with Guarded(command, f"worker-{name}", env) as worker:
        if idle_minutes is not None:
            threading.Thread(target=end_when_idle, args=(worker, idle_minutes, idle), daemon=True).start()
        for line in worker.lines():
            print(masked(line), flush=True)
        code = worker.wait()
    return 0 if idle.is_set() else code
