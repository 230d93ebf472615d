"""Runs whose process is gone without a word, by kill -9 say: they, their tasks and their runs in MLflow end too.

Prefect itself leaves all of them Running. Three things end them:

- An automation of Prefect's, which prefect.yaml registers: a flow run that has not been heard of for three heartbeats
  has crashed. It works for whoever runs our flows, on any machine.
- `vapi ui`, which has started a worker and sees its end, ends what that worker had begun, at once.
- `vapi ui` looks now and then for tasks of crashed flow runs, which no automation of Prefect's can end, and for stages
  that were killed with all that would have told MLflow.
"""

import os
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import PrefectException
from prefect.states import Crashed, State

from pipelines.flows.cell import WORKER
from pipelines.processes import Guarded
from pipelines.tracking.runs import killed_journals
from vapi_core.errors import FileError

FLOWS = ("ablation-sweep", "reproduce", "cell")
HEARTBEAT_SECONDS = 30  # Prefect's least; prefect.yaml and `pipelines.flows` set it for the flows
MISSED = 3  # heartbeats
NAME = "vapi: flow runs whose process is gone"
HEARTBEAT, ENDS = "prefect.flow-run.heartbeat", ("Completed", "Failed", "Cancelled", "Crashed")
LOOK_SECONDS = 10.0  # between two looks at whether anything is left
MOST_LEFT_OUT = 60  # looks, while MLflow is away
BEGUN = [StateType.PENDING, StateType.RUNNING]


def automation() -> AutomationCore:
    """That of the heartbeats. A run that has ended is left alone, since it does not force its state."""
    trigger = EventTrigger(
        match={"prefect.resource.id": "prefect.flow-run.*"},
        match_related={"prefect.resource.role": "flow", "prefect.resource.name": [*FLOWS]},  # other people's are theirs
        for_each={"prefect.resource.id"},
        after={HEARTBEAT},
        expect={HEARTBEAT, *(f"prefect.flow-run.{end}" for end in ENDS)},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=MISSED * HEARTBEAT_SECONDS),
    )
    told = f"its process has not been heard of for {MISSED * HEARTBEAT_SECONDS} s"
    action = ChangeFlowRunState(name="Crashed", state=StateType.CRASHED, message=told, force=False)
    return AutomationCore(name=NAME, description=f"A run has crashed when {told}.", trigger=trigger, actions=[action])


def watch() -> dict[str, str]:
    """A step of prefect.yaml: registers the automation, or renews it if it is another one. That would forget which runs
    it waits for. One that somebody has paused stays so."""
    wanted = automation()
    with get_client(sync_client=True) as client:
        known = client.read_automations_by_name(NAME)
        for other in known:
            if (other.trigger, other.actions) != (wanted.trigger, wanted.actions):
                told = wanted.model_dump(exclude={"owner_resource"}) | {"enabled": other.enabled}
                client.update_automation(other.id, AutomationCore.model_validate(told))
        if not known:
            client.create_automation(wanted)
    return {}


def end_runs_of(worker: str, pool: str, client: SyncPrefectClient) -> None:
    """Ends what a worker had begun. It must be gone, with every process that it started."""
    begun = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=BEGUN)))
    here = WorkPoolFilter(name=WorkPoolFilterName(any_=[pool]))
    for run in client.read_flow_runs(flow_run_filter=begun, work_pool_filter=here):
        if run.labels.get(WORKER) == worker:
            state: State = Crashed(message=f"its worker {worker} has ended")
            client.set_flow_run_state(run.id, state, force=True)


def end_tasks(client: SyncPrefectClient) -> None:
    """Ends the tasks of our crashed flow runs."""
    crashed = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.CRASHED])))
    begun = TaskRunFilter(state=TaskRunFilterState(type=TaskRunFilterStateType(any_=BEGUN)))
    ours = FlowFilter(name=FlowFilterName(any_=[*FLOWS]))
    for task in client.read_task_runs(flow_filter=ours, flow_run_filter=crashed, task_run_filter=begun):
        client.set_task_run_state(task.id, Crashed(message="its flow run has crashed"), force=True)


def close_runs(env: Mapping[str, str]) -> list[str]:
    """Ends the runs of killed stages in MLflow, where this folder's journals have any: by a process of its own, since
    MLflow is large, which ends with this one. Returns what it said of those that it could not send."""
    with suppress(FileError, OSError):  # of a damaged journal `vapi upload` tells; one may be removed this moment
        if killed_journals():
            command = [sys.executable, "-m", "pipelines.tracking", "upload"]
            with Guarded(command, f"upload-{os.getpid()}", env) as process:
                said = list(process.lines())
                if (code := process.wait()) != 0:
                    return said or [f"the process that sends ended with code {code}"]
    return []


def look(env: Mapping[str, str], over: threading.Event) -> None:
    """Ends what is left, again and again, until it is over. A server that is away is asked again: Prefect's at the next
    look, MLflow's after more and more of them."""
    looks, left_out, problem = 0, 0, list[str]()
    while not over.wait(LOOK_SECONDS):
        with suppress(httpx.HTTPError, PrefectException), client_of(env) as client:
            end_tasks(client)
        looks += 1
        if looks <= left_out:
            continue
        found = close_runs(env)
        looks, left_out = 0, min(2 * left_out + 1, MOST_LEFT_OUT) if found else 0
        if found and found != problem:
            print("\n".join(["Runs of killed stages still stand as running in MLflow:", *found]), file=sys.stderr)
        problem = found


def client_of(env: Mapping[str, str]) -> SyncPrefectClient:
    """A client of the server that a worker with this environment has."""
    return SyncPrefectClient(api=env["PREFECT_API_URL"], auth_string=env.get("PREFECT_API_AUTH_STRING"))
