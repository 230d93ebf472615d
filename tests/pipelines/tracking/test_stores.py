"""Where runs are kept: databases that cannot be used are told at once, and a copied folder has a store of its own."""

import shutil
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipelines.tracking import mlflow_runs, stores
from pipelines.tracking import runs as tracking
from pipelines.tracking.stores import beside, bypass_proxies, sqlite_path
from vapi_core.errors import ParameterError

ROOT = Path(__file__).parents[3]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the default store."""
    folder = tmp_path / "original"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


def run_stage(key, artifact):
    with tracking.stage_run(experiment="digits", name="a", key=key, params={}, tags={}) as run:
        run.log({"loss": 1.0}, step=1)
        run.artifact(Path(artifact))


def live(key):
    client = mlflow_runs.connect()
    (run,) = mlflow_runs.live_runs(client, mlflow_runs.find_or_create_experiment(client, "digits"), key)
    return client, run


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("moved", [False, True])
def test_a_copy_writes_nothing_into_the_original_and_has_all_old_artifacts(folder, monkeypatch, moved):
    Path("old.txt").write_text("old")
    run_stage("k1", "old.txt")
    copy = folder.with_name("copy")
    if moved:
        folder.rename(copy)
    else:
        shutil.copytree(folder, copy)
    before = contents(folder)
    monkeypatch.chdir(copy)
    Path("new.txt").write_text("new")
    run_stage("k2", "new.txt")
    assert contents(folder) == before
    for key, text in (("k1", "old"), ("k2", "new")):
        client, run = live(key)
        assert Path(run.info.artifact_uri).is_relative_to(copy)
        assert Path(client.download_artifacts(run.info.run_id, f"{text}.txt")).read_text() == text


def test_a_run_whose_artifacts_were_not_copied_keeps_them_where_they_are(folder, monkeypatch):
    Path("old.txt").write_text("old")
    run_stage("k1", "old.txt")
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("mlruns"))
    monkeypatch.chdir(copy)
    client, run = live("k1")
    assert Path(client.download_artifacts(run.info.run_id, "old.txt")).read_text() == "old"
    Path("new.txt").write_text("new")
    run_stage("k2", "new.txt")
    assert Path(live("k2")[1].info.artifact_uri).is_relative_to(copy)


def test_artifacts_of_a_database_elsewhere_lie_beside_it(folder, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder.parent}/shared.db")
    Path("new.txt").write_text("new")
    run_stage("k1", "new.txt")
    assert Path(live("k1")[1].info.artifact_uri).is_relative_to(folder.parent / "mlruns")


def test_only_locations_in_another_folder_of_artifacts_change():
    here = Path("/copy/mlruns")
    assert beside("/original/mlruns/1", here) == "/copy/mlruns/1"
    assert beside("file:///the%20original/mlruns/1/ab/artifacts", here) == "/copy/mlruns/1/ab/artifacts"
    for location in (
        "/copy/mlruns/1/ab/artifacts",
        "s3://bucket/mlruns/1",
        "mlflow-artifacts:/1",
        "/chosen/by/hand/1",
        "",
    ):
        assert beside(location, here) is None


def test_the_file_of_a_database_is_told_from_a_server():
    assert sqlite_path("sqlite:///mlflow.db") == Path("mlflow.db")
    assert sqlite_path("sqlite+pysqlite:////data/mlflow.db?timeout=5") == Path("/data/mlflow.db")
    for uri in ("http://server:5000", "postgresql://lab@server/mlflow", "sqlite://"):
        assert sqlite_path(uri) is None


class Postgres:
    """A server that refuses every password, or says nothing at all."""

    def __init__(self, answers: bool):
        self._socket, self.asked = socket.create_server(("127.0.0.1", 0)), 0
        self.port = self._socket.getsockname()[1]
        self._answers, self._open = answers, list[socket.socket]()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.asked += 1
            self._open.append(connection)
            while self._answers and (head := connection.recv(8)):
                length, code = struct.unpack("!ii", head)
                if code == 80877103:  # may it be encrypted
                    connection.sendall(b"N")
                    continue
                connection.recv(length - 8)
                fields = b"SFATAL\0VFATAL\0C28P01\0Mpassword authentication failed\0\0"
                connection.sendall(b"E" + struct.pack("!i", len(fields) + 4) + fields)
                connection.close()
                break

    def close(self):
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@pytest.fixture
def no_waiting(monkeypatch):
    """MLflow's own attempts, ten within 100 s, must not begin."""
    from mlflow.store.db import utils

    def refuse(uri):
        raise AssertionError(f"MLflow tries {uri} itself")

    monkeypatch.setattr(utils, "create_sqlalchemy_engine_with_retry", refuse)


def refusal():
    with pytest.raises(ParameterError, match="^MLFLOW_TRACKING_URI: the database .* cannot be used: ") as caught:
        mlflow_runs.find_runs("digits", "")
    return str(caught.value)


def test_a_wrong_password_is_told_after_one_attempt(folder, monkeypatch, no_waiting):
    server = Postgres(answers=True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql://lab:s3cr3t@127.0.0.1:{server.port}/mlflow")
    told = refusal()
    assert "password authentication failed" in told and "s3cr3t" not in told
    assert server.asked <= 2  # encrypted, and not
    server.close()


def test_a_database_that_says_nothing_is_given_up(folder, monkeypatch, no_waiting):
    monkeypatch.setattr(stores, "SECONDS", 2)  # libpq's least
    server = Postgres(answers=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql://lab@127.0.0.1:{server.port}/mlflow")
    assert "timeout expired" in refusal()
    server.close()


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://lab@127.0.0.1:9/mlflow",
        "postgresql://lab@no.such.host.invalid/mlflow",
        "sqlite:////dev/null/mlflow.db",
        "sqlite:///a-folder",
        "sqlite:///notes.txt",
    ],
)
def test_a_database_that_cannot_be_used_is_told_by_the_stage_and_does_not_stop_it(
    folder, monkeypatch, no_waiting, capsys, uri
):
    (folder / "a-folder").mkdir()
    (folder / "notes.txt").write_text("no database, and longer than the head of one\n" * 10)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    refusal()
    with tracking.stage_run(experiment="digits", name="a", key="k1", params={}, tags={}) as run:
        run.log({"loss": 1.0}, step=1)
    told = capsys.readouterr().err
    assert "the database" in told and "vapi upload" in told
    assert tracking.Journal(tracking.JOURNALS, "k1").state()["status"] == "FINISHED"


def test_servers_on_this_machine_are_reached_without_a_proxy():
    import requests

    environment = {"http_proxy": "http://proxy:3128", "no_proxy": "intranet, 10.0.0.1"}
    bypass_proxies(environment)
    bypass_proxies(environment)  # as does every command that is started by another one
    assert environment["NO_PROXY"] == environment["no_proxy"] == "intranet, 10.0.0.1,localhost,127.0.0.1,::1"
    for url in ("http://127.0.0.1:5000/api", "http://localhost:4200", "http://[::1]:5000", "http://intranet"):
        assert requests.utils.should_bypass_proxies(url, environment["no_proxy"]), url
    assert not requests.utils.should_bypass_proxies("http://server:5000", environment["no_proxy"])


@pytest.mark.parametrize("module", ["pipelines.flows", "pipelines.tracking.mlflow_runs"])
def test_both_clients_have_their_environment_set_before_they_start(module):
    program = f"import os, {module} as m; getattr(m, 'import_client', int)(); print(os.environ['no_proxy'])"
    told = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "127.0.0.1" in told.stdout
