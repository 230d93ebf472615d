"""Handing out a cell: again when its worker is lost, not when it fails, and no more when the sweep is to end."""

import logging
import threading
from contextlib import nullcontext
from types import SimpleNamespace
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import WorkerStatus
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling, Completed, Failed, Pending, Running, Scheduled

from pipelines.flows import cell
from pipelines.variants.sweep import Experiment
from vapi_core.errors import VapiError

EXPERIMENT = Experiment("cell-1", "head", "upstream-1", {"+variants.cell": {}}, "score@cell")


class Server:
    """Prefect's, as far as a cell is handed out: of each run the states that are seen one after another."""

    def __init__(self, *runs, offline=()):
        self.runs, self.offline, self.asked, self.set = list(runs), offline, [], []

    def submit(self, name, parameters, timeout):
        self.asked.append(parameters)
        self.states = list(self.runs.pop(0))
        return SimpleNamespace(id=uuid4())

    def read_flow_run(self, run_id):
        worker, state = self.states.pop(0)
        return SimpleNamespace(state=state, labels={} if worker is None else {cell.WORKER: worker})

    def read_workers_for_work_pool(self, pool):
        status = {True: WorkerStatus.OFFLINE, False: WorkerStatus.ONLINE}
        return [SimpleNamespace(name=name, status=status[name in self.offline]) for name in ("one", "other")]

    def set_flow_run_state(self, run_id, state, force=False):
        self.set.append(state.name)


@pytest.fixture
def serve(monkeypatch):
    def serve(server):
        monkeypatch.setattr(cell, "run_deployment", server.submit)
        monkeypatch.setattr(cell, "get_client", lambda sync_client: nullcontext(server))
        return server

    monkeypatch.setattr(cell, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(cell, "_ending", threading.Event())
    monkeypatch.setattr(cell, "get_run_logger", lambda: logging.getLogger("flow"))
    return serve


def test_a_worker_gets_all_that_the_experiment_is_and_its_end_is_waited_for(serve):
    states = [(None, Scheduled()), (None, Pending()), ("one", Running()), ("one", Completed())]
    server = serve(Server(states))
    cell.hand_out(EXPERIMENT)
    (asked,) = server.asked
    assert Experiment(**asked) == EXPERIMENT and server.states == [] and server.set == []


def test_a_cell_whose_worker_is_lost_ends_as_crashed_and_goes_to_another(serve):
    server = serve(Server([("one", Running())], [("other", Running()), ("other", Completed())], offline=("one",)))
    cell.hand_out(EXPERIMENT)
    assert len(server.asked) == 2 and server.set == ["Crashed"]


def test_a_cell_that_fails_is_not_handed_out_again_here(serve):
    server = serve(Server([("one", Failed(message="no memory"))]))
    with pytest.raises(VapiError, match="cell-1 ended as Failed: no memory"):
        cell.hand_out(EXPERIMENT)
    assert len(server.asked) == 1


def test_workers_that_are_lost_one_after_another_with_a_cell_end_it(serve):
    server = serve(Server(*[[("one", Running())]] * cell.ATTEMPTS, offline=("one",)))
    with pytest.raises(VapiError, match="its worker one is lost"):
        cell.hand_out(EXPERIMENT)
    assert len(server.asked) == cell.ATTEMPTS


def test_where_the_sweep_is_cancelled_its_cells_are_and_no_more_are_handed_out(serve, monkeypatch):
    server, runs = serve(Server()), {uuid4(), uuid4()}
    monkeypatch.setattr(cell, "_handed_out", runs)
    cell.cancel_all()
    assert server.set == [Cancelling().name] * 2
    with pytest.raises(VapiError, match="to end"):
        cell.hand_out(EXPERIMENT)
    assert server.asked == []


def test_a_server_without_the_deployment_is_told_with_what_makes_it(serve, monkeypatch):
    def unknown(*_, **__):
        raise ObjectNotFound(Exception("404"))

    serve(Server())
    monkeypatch.setattr(cell, "run_deployment", unknown)
    with pytest.raises(VapiError, match="prefect deploy --all"):
        cell.hand_out(EXPERIMENT)
