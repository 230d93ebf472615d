import shutil
import socket
import threading

import pytest
from werkzeug.serving import make_server

from pipelines.tracking.mlflow_runs import import_client


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """A database with MLflow's tables and no run, to be copied: MLflow computes for more than a second to make one."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    import_client()(f"sqlite:///{path}").search_experiments()
    return path


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
