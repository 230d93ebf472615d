"""Flow `cell`: one experiment of a sweep, on whichever machine has a worker for it, and how a sweep hands it out.

A worker runs in a clone of the repository, whose commit does not matter: the experiment runs in a clone of its own at
the sweep's commit (`variants/experiment.py`), which it has from git's origin, and what it builds on from DVC's remote.
"""

import threading
import time
from typing import Any
from uuid import UUID

from prefect import flow, get_run_logger
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, WorkerStatus
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling, Crashed, State

from pipelines.flows.running import run_command, visible_gpus
from pipelines.processes import end_with_parent
from pipelines.variants.sweep import Experiment, command
from vapi_core.errors import VapiError

POOL = "cells"
DEPLOYMENT = "cell/cell"
POLL_SECONDS = 2.0
ATTEMPTS = 5  # workers that may be lost one after another with the same cell
WORKER = "prefect.worker.name"  # label of a run, which the worker gives it

_handed_out = set[UUID]()
_ending = threading.Event()


@flow(name="cell", flow_run_name="{name}", retries=1, retry_delay_seconds=2)
def cell(name: str, baseline: str, base: str, overrides: dict[str, Any], stage: str) -> None:
    """Runs an experiment of a sweep.

    Args:
        name: of the experiment.
        baseline: the commit that it builds on.
        base: the experiment whose files it begins with.
        overrides: changes of params.yaml.
        stage: the last of its stages.
    """
    end_with_parent()  # a worker that was killed gives its cell back: nothing of it works on
    run_command(command(Experiment(name, baseline, base, overrides, stage), shared=True), name, visible_gpus("auto"))


def hand_out(experiment: Experiment) -> None:
    """Has a worker run an experiment, and waits for its end. One whose worker is lost is handed out again.

    Raises:
        VapiError: it did not end well, or the server knows no deployment of cells.
    """
    asked = {
        "name": experiment.name,
        "baseline": experiment.baseline,
        "base": experiment.base,
        "overrides": experiment.overrides,
        "stage": experiment.stage,
    }
    for _ in range(ATTEMPTS):
        if _ending.is_set():  # a retry, say, of what was just cancelled
            raise VapiError("the sweep is to end")
        try:
            run: Any = run_deployment(DEPLOYMENT, parameters=asked, timeout=0)
        except ObjectNotFound:
            problem = f"the Prefect server has no deployment {DEPLOYMENT}"
            raise VapiError(f"{problem}. Start `make ui`, or run `prefect deploy --all`.") from None
        state = _end_of(run.id)
        if state.is_completed():
            return
        if not state.is_crashed():
            break
        get_run_logger().warning("%s: %s. It is handed out again.", experiment.name, state.message)
    raise VapiError(f"{experiment.name} ended as {state.name}: {state.message or 'no message'}")


def cancel_all() -> None:
    """Cancels every cell that this process has handed out, in any thread, and hands out no more: it is to end."""
    _ending.set()
    with get_client(sync_client=True) as client:
        for run_id in list(_handed_out):
            client.set_flow_run_state(run_id, Cancelling())


def _end_of(run_id: UUID) -> State:
    """Waits for the end of a run, and ends it where its worker is lost."""
    _handed_out.add(run_id)
    try:
        with get_client(sync_client=True) as client:
            while True:
                run = client.read_flow_run(run_id)
                assert run.state is not None
                if run.state.is_final():
                    return run.state
                if not run.state.is_scheduled() and is_lost(client, run):
                    state: State = Crashed(message=f"its worker {run.labels[WORKER]} is lost")
                    client.set_flow_run_state(run_id, state, force=True)
                    return state
                time.sleep(POLL_SECONDS)
    finally:
        _handed_out.discard(run_id)


def is_lost(client: SyncPrefectClient, run: FlowRun) -> bool:
    """Whether the worker of a run has not been heard of for so long that Prefect calls it offline."""
    name = run.labels.get(WORKER)
    known = client.read_workers_for_work_pool(POOL) if name is not None else []
    return any(worker.name == name and worker.status == WorkerStatus.OFFLINE for worker in known)
