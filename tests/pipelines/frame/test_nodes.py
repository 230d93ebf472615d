"""Several nodes find each other, refuse what would not fit, and hear of each other's end; two at a stage run in
test_dag."""

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from threading import Event

import pytest
import torch
from torch.distributed import TCPStore

from pipelines.frame import nodes
from pipelines.frame.launch import run_with_others
from pipelines.messages import Interrupted, one_message
from tests.checkout import ROOT
from vapi_core.errors import ParameterError, VapiError

HERE = dict.fromkeys(nodes.MUST_AGREE, "same")
JOB = {"id": "1", "arguments": ["align", "va-pi"], "nodes": 2, "processes": 8, "environment": {}}


@pytest.fixture
def port(monkeypatch):
    """A free port of this machine, which VAPI_RENDEZVOUS names."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    monkeypatch.setenv(nodes.RENDEZVOUS, f"127.0.0.1:{free}")
    return free


@pytest.mark.parametrize("text", ["", "node1", "node1:", ":29500", "node1:port", "node1:0", "node1:65536"])
def test_an_address_that_is_none_is_told_with_its_form(monkeypatch, text):
    monkeypatch.setenv(nodes.RENDEZVOUS, text)
    with pytest.raises(VapiError, match=r"^VAPI_RENDEZVOUS is .*: HOST:PORT is needed"):
        nodes.rendezvous()


def test_an_address_is_a_host_and_a_port(monkeypatch):
    monkeypatch.setenv(nodes.RENDEZVOUS, "node1:29500")
    assert nodes.rendezvous() == ("node1", 29500)


@pytest.mark.parametrize("name", nodes.MUST_AGREE)
def test_a_node_that_would_run_something_else_is_told_what_differs(name):
    assert nodes.difference(HERE, HERE) is None
    problem = nodes.difference(HERE, HERE | {name: "mine"})
    assert problem.startswith(f"{nodes.MUST_AGREE[name]} (mine, and the first node has same). Start `vapi node`")


def test_a_commit_is_told_before_what_follows_from_it():
    other = HERE | {"commit": "mine", "params": "mine", "folder": "mine"}
    assert nodes.difference(HERE, other).startswith(nodes.MUST_AGREE["commit"])


def test_what_a_node_would_run_is_known_by_its_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vapi_core").mkdir()
    before = nodes.facts("token")
    assert list(before) == list(nodes.MUST_AGREE)
    for name, file in (("params", "params.yaml"), ("code", "vapi_core/model.py")):
        (tmp_path / file).write_text("new")
        after = nodes.facts("token")
        assert nodes.difference(before, after).startswith(nodes.MUST_AGREE[name])
        before = after


# Coming together


@contextmanager
def vapi_node(folder):
    """The command in a folder that has the code; yields what reads its lines."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "VAPI_WORK": str(folder / ".work")}
    command = [sys.executable, "-m", "pipelines.cli", "node"]
    output = subprocess.PIPE
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output, text=True) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)


def test_a_node_that_never_comes_ends_the_stage_with_one_message(port, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(nodes, "WORK", tmp_path)
    told = rf"^launch\.nodes: 1 of 3 nodes were here after 0 s\. Run `vapi node` on the others, with .*:{port}"
    with pytest.raises(ParameterError, match=told), nodes.gathered(3, 8, ["align", "va-pi"], seconds=0.0):
        pytest.fail("it began without the others")
    assert not list((tmp_path / "nodes").iterdir())


def test_a_port_that_another_has_is_named(port, tmp_path, monkeypatch):
    monkeypatch.setattr(nodes, "WORK", tmp_path)
    with (
        socket.create_server(("", port)),
        pytest.raises(VapiError, match=rf"^VAPI_RENDEZVOUS: port {port} is in use here\."),
        nodes.gathered(2, 8, []),
    ):
        pytest.fail("it began")


def test_a_node_of_another_clone_is_refused_here_and_there(port, tmp_path, monkeypatch):
    first, other = tmp_path / "first", tmp_path / "other"
    for folder, params in ((first, "seed: 0"), (other, "seed: 1")):
        folder.mkdir()
        (folder / "params.yaml").write_text(params)
    monkeypatch.chdir(first)
    monkeypatch.setattr(nodes, "WORK", first / ".work")
    monkeypatch.setattr(nodes, "PARTING_SECONDS", 60.0)
    with vapi_node(other) as node:
        refused = rf"^node {socket.gethostname()} was refused: its params\.yaml is another \("
        with pytest.raises(VapiError, match=refused), nodes.gathered(2, 1, ["align", "va-pi"]):
            pytest.fail("it began")
        lines = [node.stdout.readline() for _ in range(4)]
    assert lines[1:] == [
        "align@va-pi begins.\n",
        lines[2],
        "align@va-pi ended with code 1.\n",
    ]
    assert lines[2].startswith("error: the first node refused this one: its params.yaml is another (")


# The end


@pytest.fixture
def stores(port):
    """What the first node serves, and what another one has of it."""
    return [
        TCPStore("127.0.0.1", port, is_master=serve, wait_for_workers=False, timeout=nodes.REPLY)
        for serve in (True, False)
    ]


@pytest.fixture
def group(stores):
    """The first of two nodes."""
    return nodes.Group(stores[0], JOB, 0, ["first", "second"])


@pytest.fixture
def other(stores):
    """The second of them."""
    return nodes.Group(stores[1], JOB, 1, ["second"])


def test_what_ends_one_node_is_told_on_the_other(group, other, monkeypatch):
    monkeypatch.setattr(nodes, "LOOK_SECONDS", 60.0)  # or it stops the tests, as it would stop the processes of a node
    with pytest.raises(VapiError), other:
        raise VapiError("the disk is full.")
    assert group.cause() == "on node second: the disk is full."
    with pytest.raises(VapiError), group:
        raise VapiError("the image is damaged.")
    assert other.cause() == "on the first node: the image is damaged."


def test_a_node_that_has_done_its_part_is_no_problem(group, other, monkeypatch):
    monkeypatch.setattr(nodes, "PARTING_SECONDS", 0.0)
    monkeypatch.setattr(nodes, "LOOK_SECONDS", 60.0)
    with group:
        with other:
            pass
        assert group.cause() is None


def test_a_node_that_says_nothing_is_gone(group, other, monkeypatch):
    monkeypatch.setattr(nodes, "PARTING_SECONDS", 0.3)
    assert group.cause() == "node second is gone."
    monkeypatch.setattr(nodes, "GONE_SECONDS", 0.0)
    assert group._look() == "node second was not heard of for 0 s."
    assert other._look() is None and group._look() is None  # now it has been heard of


def test_the_end_of_the_first_node_ends_the_others(other, stores):
    del stores[0]  # with which the store ends
    assert other.cause() == "the first node is gone."


def test_a_node_stops_its_processes_when_another_has_failed(group, other, monkeypatch, capsys):
    monkeypatch.setattr(nodes, "LOOK_SECONDS", 0.01)

    def agent(arguments):
        """torchrun's, whose processes would work on."""
        assert arguments[:3] == ["--nnodes=2", "--nproc-per-node=8", "--node-rank=0"]
        assert arguments[-3:] == ["--module", "pipelines.stages", "align"]
        with pytest.raises(VapiError), other:
            raise VapiError("the disk is full.")
        while True:
            Event().wait(0.1)

    monkeypatch.setattr("pipelines.frame.launch._run_agent", agent)

    @one_message
    def stage():
        with group:
            run_with_others(group, ["--module", "pipelines.stages", "align"])

    assert stage() == 1
    assert capsys.readouterr().err == "error: on node second: the disk is full.\n"


def test_a_stage_that_a_person_stops_says_so(group, monkeypatch):
    def interrupted(arguments):
        raise Interrupted(signal.SIGINT)

    monkeypatch.setattr("pipelines.frame.launch._run_agent", interrupted)
    with pytest.raises(Interrupted):
        run_with_others(group, [])


def test_a_job_is_announced_to_whoever_asks(port, stores):
    assert nodes.announced() is None
    stores[0].set(nodes.JOB, json.dumps(JOB))
    assert nodes.announced() == JOB
    assert torch.__version__ in nodes.facts("")["torch"]


def test_where_nobody_is_nothing_is_announced(port):
    assert nodes.announced() is None
