"""What ends where a process is gone without a word. With real servers: test_flows.py."""

from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import pytest
import yaml
from prefect.events.schemas.automations import Automation
from prefect.exceptions import ObjectNotFound
from prefect.states import Completed, Running

from pipelines.flows import lost
from pipelines.flows.ablation_sweep import ablation_sweep
from pipelines.flows.cell import WORKER, cell
from pipelines.flows.reproduce import reproduce


class Upload:
    """The process that sends."""

    def __init__(self, started, code, command, name, env, said=("error: the server is away",)):
        started.append(command)
        self.code, self.said = code, said

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def lines(self):
        return iter(self.said)

    def wait(self):
        return self.code


class Server:
    """Prefect's, as far as these functions ask it."""

    def __init__(self, *runs, tasks=()):
        self.runs, self.tasks, self.automations, self.ended = runs, tasks, {}, {}

    def read_flow_runs(self, **filters):
        return self.runs

    def read_task_runs(self, **filters):
        self.asked = filters
        return self.tasks

    def set_flow_run_state(self, run_id, state, force):
        self.ended[run_id] = state

    set_task_run_state = set_flow_run_state

    def read_automations_by_name(self, name):
        return [a for a in self.automations.values() if a.name == name]

    def create_automation(self, automation):
        made = Automation(id=uuid4(), **automation.model_dump())
        self.automations[made.id] = made

    def update_automation(self, automation_id, automation):
        sent = automation.model_dump(exclude_unset=True)  # as Prefect's client sends it
        assert "owner_resource" not in sent  # which its server refuses
        self.automations[automation_id] = Automation(id=automation_id, **sent)


@pytest.fixture
def server(monkeypatch):
    server = Server()
    monkeypatch.setattr(lost, "get_client", lambda sync_client: nullcontext(server))
    return server


def run_of(worker, state=None):
    return SimpleNamespace(id=uuid4(), labels={WORKER: worker} if worker else {}, state=state or Running())


def test_all_that_a_worker_had_begun_ends_with_it_and_no_other_run():
    ours, other, of_nobody = run_of("one"), run_of("two"), run_of(None)
    server = Server(ours, other, of_nobody)
    lost.end_runs_of("one", "local", server)
    assert {run: state.type.value for run, state in server.ended.items()} == {ours.id: "CRASHED"}
    assert "its worker one has ended" in server.ended[ours.id].message


def test_the_tasks_of_crashed_runs_of_our_flows_end_too():
    task = SimpleNamespace(id=uuid4())
    server = Server(tasks=[task])
    lost.end_tasks(server)
    assert server.ended[task.id].is_crashed()
    assert server.asked["flow_filter"].name.any_ == [*lost.FLOWS]
    assert [state.value for state in server.asked["flow_run_filter"].state.type.any_] == ["CRASHED"]
    assert not {Completed().type} & {*server.asked["task_run_filter"].state.type.any_}


def test_the_automation_is_registered_once_and_renewed_where_it_is_another(server):
    lost.watch()
    ((number, made),) = server.automations.items()
    lost.watch()
    assert server.automations[number] is made and made.enabled and made.trigger == lost.automation().trigger
    for enabled in (True, False):  # one that was paused stays paused
        older = made.trigger.model_copy(update={"within": timedelta(seconds=15)})
        server.automations[number] = made.model_copy(update={"trigger": older, "enabled": enabled})
        lost.watch()
        (renewed,) = server.automations.values()
        assert (renewed.trigger, renewed.enabled) == (lost.automation().trigger, enabled)


def test_three_heartbeats_are_missed_before_a_run_of_ours_counts_as_crashed():
    trigger = lost.automation().trigger
    assert trigger.within.total_seconds() == 3 * lost.HEARTBEAT_SECONDS
    assert [*lost.FLOWS] == [ablation_sweep.name, reproduce.name, cell.name]
    assert trigger.match_related["prefect.resource.name"] == [*lost.FLOWS]
    assert not lost.automation().actions[0].force  # a run that has ended stays as it is
    for deployment in yaml.safe_load(Path("prefect.yaml").read_text(encoding="utf-8"))["deployments"]:
        env = deployment["work_pool"]["job_variables"]["env"]
        assert env == {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(lost.HEARTBEAT_SECONDS)}


@pytest.mark.parametrize("killed", [[], ["a journal"]])
def test_mlflow_is_asked_only_where_a_stage_was_killed(monkeypatch, killed):
    started = []
    monkeypatch.setattr(lost, "killed_journals", lambda: killed)
    monkeypatch.setattr(lost, "Guarded", partial(Upload, started, 0))
    assert lost.close_runs({}) == []
    assert [command[1:] for command in started] == [["-m", "pipelines.tracking", "upload"]] * len(killed)


def test_a_sender_that_was_killed_without_a_word_has_failed_too(monkeypatch):
    monkeypatch.setattr(lost, "killed_journals", lambda: ["a journal"])
    monkeypatch.setattr(lost, "Guarded", partial(Upload, [], 143, said=()))
    assert lost.close_runs({}) == ["the process that sends ended with code 143"]


def test_what_could_not_be_sent_is_said_once_and_asked_for_less_and_less_often(monkeypatch, capsys):
    started, looks = [], iter(range(40))
    monkeypatch.setattr(lost, "killed_journals", lambda: ["a journal"])
    monkeypatch.setattr(lost, "Guarded", partial(Upload, started, 1))
    monkeypatch.setattr(lost, "client_of", lambda env: nullcontext(Server()))
    begun = []

    class Over:
        def wait(self, seconds):
            begun.append(len(started))
            return next(looks, None) is None

    lost.look({}, Over())
    first = [begun.index(count) for count in range(1, len(started) + 1)]  # the looks behind which there was one more
    assert [after - before for before, after in pairwise(first)] == [2, 4, 8, 16]
    assert capsys.readouterr().err.count("the server is away") == 1


def test_a_run_that_was_deleted_this_moment_does_not_end_the_watch(monkeypatch):
    class Forgetful(Server):
        def read_task_runs(self, **filters):
            raise ObjectNotFound(http_exc=None)

    looks = iter([False, False, True])
    monkeypatch.setattr(lost, "killed_journals", lambda: [])
    monkeypatch.setattr(lost, "client_of", lambda env: nullcontext(Forgetful()))
    lost.look({}, SimpleNamespace(wait=lambda seconds: next(looks)))
    assert next(looks, None) is None
