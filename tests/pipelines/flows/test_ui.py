"""What `make ui` hands to its servers. The servers themselves are asked in test_flows.py."""

import socket
from contextlib import ExitStack

import pytest

from pipelines.flows import ui

DATABASE = "postgresql://lab:correct-horse@db:5432/mlflow"


@pytest.fixture
def started(monkeypatch):
    """Command and environment of every service, in place of the service."""
    started = {}
    monkeypatch.setattr(ui, "Service", lambda name, command, env, stack: started.update({name: (command, env)}))
    return started


def test_the_database_reaches_mlflow_by_its_environment_and_not_by_its_command_line(started):
    env = {"MLFLOW_TRACKING_URI": DATABASE, "MLFLOW_SERVER_ALLOWED_HOSTS": "lab.example:8081"}
    ui.start_mlflow(env, ExitStack())
    command, given = started["mlflow-server"]
    assert "correct-horse" not in " ".join(command) and given["MLFLOW_BACKEND_STORE_URI"] == DATABASE
    port = env["MLFLOW_TRACKING_URI"].rpartition(":")[2]
    assert given["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",") == [
        f"127.0.0.1:{port}",
        f"localhost:{port}",
        "lab.example:8081",
    ]


def test_the_login_that_the_server_asks_for_is_the_one_that_worker_and_commands_give(started, monkeypatch):
    monkeypatch.setattr(ui, "server_login", lambda: "lab:correct-horse")
    env = {}
    ui.start_prefect(env, ExitStack())
    command, given = started["prefect-server"]
    assert env["PREFECT_API_AUTH_STRING"] == "lab:correct-horse" and "correct-horse" not in " ".join(command)
    assert env["PREFECT_API_URL"] == given["PREFECT_SERVER_UI_API_URL"]
    assert env["PREFECT_API_URL"] == f"http://127.0.0.1:{given['PREFECT_SERVER_API_PORT']}/api"


def test_servers_for_other_machines_listen_at_their_address_answer_to_it_and_warn(started):
    env = {"MLFLOW_TRACKING_URI": DATABASE}
    ui.start_prefect(env, ExitStack(), "localhost")
    ui.start_mlflow(env, ExitStack(), "localhost")
    assert started["prefect-server"][1]["PREFECT_SERVER_API_HOST"] == "localhost"
    command, given = started["mlflow-server"]
    assert command[2:4] == ["--host", "localhost"] and given["MLFLOW_SERVER_ALLOWED_HOSTS"].startswith("localhost:")
    assert env["PREFECT_API_URL"].startswith("http://localhost:") and ui.warning("localhost", None) is None
    assert "PREFECT_SERVER_API_AUTH_STRING" in ui.warning("10.0.0.5", None)
    assert "plain HTTP" in ui.warning("10.0.0.5", "lab:secret")
    with pytest.raises(ui.VapiError, match="cannot listen at 192.0.2.1"):  # an address that no machine has
        ui.free_port(4200, "192.0.2.1")


def test_a_server_that_cannot_be_asked_is_one_message_without_the_password(monkeypatch, capsys):
    with socket.socket() as s:  # a port at which nobody listens
        s.bind(("127.0.0.1", 0))
        monkeypatch.setenv("PREFECT_API_URL", f"http://lab:correct-horse@127.0.0.1:{s.getsockname()[1]}/api")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example:5000")
        assert ui.main() == 1
    err = capsys.readouterr().err
    assert err.startswith("error: the Prefect server at http://lab:***@127.0.0.1:") and len(err.splitlines()) == 1


def test_a_command_that_fails_tells_no_password():
    with pytest.raises(ui.VapiError, match=r"postgresql://lab:\*\*\*@db:5432/mlflow") as failure:
        ui.run(["sh", "-c", f"echo cannot reach {DATABASE}; exit 1"], {})
    assert "correct-horse" not in str(failure.value)
