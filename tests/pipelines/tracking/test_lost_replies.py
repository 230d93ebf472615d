"""A reply of MLflow's server that is lost makes no second live run. The server is MLflow's own, in this process."""

import shutil
import socket
import threading

import pytest
from werkzeug.serving import make_server

from pipelines.tracking import mlflow_runs
from pipelines.tracking import runs as tracking


class LossyServer:
    """MLflow's server; it loses the replies to so many requests of a path, after it has done what they ask for."""

    def __init__(self):
        from mlflow.server import app

        self._app, self._losses = app.wsgi_app, dict[str, int]()
        self.seen: list[str] = []
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def lose(self, path: str, times: int) -> None:
        self._losses[path] = times

    def _answer(self, environ, start_response):
        path = environ["PATH_INFO"].rpartition("/mlflow/")[2]
        self.seen.append(path)
        reply = self._app(environ, start_response)
        if self._losses.get(path, 0) > 0:
            self._losses[path] -= 1
            list(reply)
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            return []
        return reply

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(tmp_path, monkeypatch, empty_store):
    shutil.copy(empty_store, tmp_path / "server.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("_MLFLOW_SERVER_FILE_STORE", f"sqlite:///{tmp_path}/server.db")
    monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", str(tmp_path / "artifacts"))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")  # the client asks again at once
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    from mlflow import MlflowClient
    from mlflow.server import handlers
    from mlflow.tracking._tracking_service import utils

    monkeypatch.setattr(handlers, "_tracking_store", None)
    monkeypatch.setattr(utils, "_tracking_uri", None)
    server = LossyServer()
    MlflowClient(server.url).search_experiments()  # on its first request a server takes this process's URI for its own
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    yield server
    server.close()


def live(key="k1"):
    client = mlflow_runs.connect()
    return mlflow_runs.live_runs(client, mlflow_runs.find_or_create_experiment(client, "digits"), key)


@pytest.mark.parametrize("times", [1, 3])  # the client asks three times, and gives up
@pytest.mark.parametrize("path", ["runs/create", "runs/delete", "experiments/create", "runs/log-batch"])
def test_a_lost_reply_makes_no_second_live_run(server, path, times, capsys):
    for attempt in range(2):  # the second one replaces the run of the first
        server.lose(path, times)
        with tracking.stage_run(
            experiment="digits", name="align", key="k1", params={"a": 1}, tags={}, parent="pipeline"
        ) as run:
            run.log({"loss": float(attempt)}, step=1)
    server.lose(path, 0)
    if "vapi upload" in capsys.readouterr().err:  # what was not sent after three lost replies
        tracking.upload(tracking.all_journals(tracking.JOURNALS)[0])
    assert server.seen.count(path) >= times
    (finished,) = live()
    assert finished.info.status == "FINISHED" and finished.data.metrics == {"loss": 1.0}
    assert finished.data.params == {"a": "1"}
    (parent,) = live(tracking.parent_key("digits", "pipeline"))
    assert finished.data.tags["mlflow.parentRunId"] == parent.info.run_id


@pytest.mark.parametrize("times", [1, 3])
def test_a_run_whose_creation_was_not_heard_of_is_taken_over(server, times, capsys):
    server.lose("runs/create", times)
    with tracking.stage_run(experiment="digits", name="align", key="k1", params={}, tags={}) as run:
        run.log({"loss": 0.5}, step=1)
    assert capsys.readouterr().err == ""
    assert [r.data.metrics for r in live()] == [{"loss": 0.5}]
