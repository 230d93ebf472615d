"""Several machines at one stage: how they find each other, what must agree, and how each learns that another has ended.

The first node is where the stage was started, by DVC say. It opens torch's store (TCPStore) at VAPI_RENDEZVOUS and says
there what is to run. `vapi node` on each other machine (`pipelines.commands.node`) comes there, is compared with the
first, and gets its number. Then torchrun's agents of all nodes start the processes, with the same store. While they
work, each node looks at what the others say: torchrun's agents themselves do not notice that another node is gone.

All nodes share one folder, as processes of one machine do: a file that all write has its rows from all of them.
"""

import hashlib
import json
import os
import platform
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from pipelines.config.loading import PARAMS_FILE
from pipelines.config.paths import WORK
from pipelines.processes import only_one
from pipelines.repository.git import git
from vapi_core.errors import FileError, ParameterError, VapiError, quoted

RENDEZVOUS = "VAPI_RENDEZVOUS"  # HOST:PORT of the first node; it changes with each job of a cluster, unlike params.yaml
CARRIED = ("VAPI_ANYWAY", "VAPI_REPOSITORY", "VAPI_WORK")  # of the first node's environment: a stage depends on them
COME_SECONDS = 300.0  # in which the other nodes have to come
GONE_SECONDS = 60.0  # after which a node that says nothing is gone
LOOK_SECONDS = 1.0  # between two looks at the other nodes
PARTING_SECONDS = 5.0  # in which a node that ends hears what the others have to say
REPLY = timedelta(seconds=30)  # of the store
JOB = "vapi/job"
# what must be the same on all nodes, in the order in which it is told
MUST_AGREE = {
    "commit": "it is at another commit",
    "code": "its code is another",
    "params": f"its {PARAMS_FILE} is another",
    "torch": "it has another torch",
    "folder": "it runs in another folder",
    "token": "its work folder is not that of the first node",
}
SAME_FOLDER = "Start `vapi node` in the folder that all nodes share"
StoreProblem = (ValueError, RuntimeError, TimeoutError)  # torch's DistError is a RuntimeError


def rendezvous() -> tuple[str, int]:
    """Host and port of the first node.

    Raises:
        VapiError: VAPI_RENDEZVOUS is not set, or no address.
    """
    text = os.environ.get(RENDEZVOUS, "")
    host, _, port = text.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 2**16):
        problem = f"is {quoted(text)}" if text else "is not set"
        raise VapiError(
            f"{RENDEZVOUS} {problem}: HOST:PORT is needed, an address of the first node and a free port there; "
            "the same on all nodes."
        )
    return host, int(port)


# What must agree


def facts(token: str) -> dict[str, str]:
    """What this node would run, as text under the names of MUST_AGREE.

    Args:
        token: what a file has that the first node wrote into the work folder.
    """
    import torch

    try:
        commit = git(Path(), "rev-parse", "--verify", "--quiet", "HEAD").strip()
    except FileError:  # no git here
        commit = ""
    code, params = hashlib.sha256(), Path(PARAMS_FILE)
    for path in sorted(path for folder in ("pipelines", "vapi_core") for path in Path(folder).rglob("*.py")):
        code.update(f"{path} ".encode() + path.read_bytes())
    return {
        "commit": commit[:12],
        "code": code.hexdigest()[:12],
        "params": hashlib.sha256(params.read_bytes() if params.is_file() else b"").hexdigest()[:12],
        "torch": f"{torch.__version__} on Python {platform.python_version()}",
        "folder": str(Path.cwd()),
        "token": token,
    }


def difference(first: dict[str, str], other: dict[str, str]) -> str | None:
    """Why a node cannot work with the first one; None if it can."""
    for name, words in MUST_AGREE.items():
        if first[name] != other.get(name):
            values = f"{other.get(name) or 'none'}, and the first node has {first[name] or 'none'}"
            return f"{words} ({values}). {SAME_FOLDER}, and restart it there if the environment is another."
    return None


# The store


def _open_store(host: str, port: int, serve: bool) -> Any:
    from torch.distributed import TCPStore

    # torchrun's agent opens the same port in the same process: hence multi_tenant
    return TCPStore(host, port, is_master=serve, wait_for_workers=False, multi_tenant=serve, timeout=REPLY)


def announced() -> dict[str, Any] | None:
    """What the first node wants to run; None while there is none at the address."""
    host, port = rendezvous()
    try:
        socket.create_connection((host, port), timeout=LOOK_SECONDS).close()  # torch would warn of each attempt
        store = _open_store(host, port, serve=False)
        return json.loads(store.get(JOB)) if store.check([JOB]) else None
    except (OSError, *StoreProblem):
        return None


class Group:
    """The nodes at one stage, as one of them sees them; number 0 is the first. Used as a context while they work.

    Attributes:
        problem: what has ended this node's part from elsewhere, once it has; the process then gets SIGTERM.
    """

    def __init__(self, store: Any, job: dict[str, Any], number: int, hosts: list[str]):
        self.problem: str | None = None
        self.arguments: list[str] = job["arguments"]
        self._store, self._job, self._number, self._hosts = store, job, number, hosts
        self._over = threading.Event()
        self._beats = dict.fromkeys(range(1, len(hosts)), (0, time.monotonic()))
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def options(self) -> list[str]:
        """Of torchrun, for this node's agent."""
        host, port = rendezvous()
        return [
            f"--nnodes={self._job['nodes']}",
            f"--nproc-per-node={self._job['processes']}",
            f"--node-rank={self._number}",
            "--rdzv-backend=static",  # process 0 is on the first node, where DVC waits
            f"--rdzv-endpoint={host}:{port}",
            f"--rdzv-id={self._job['id']}",
            f"--rdzv-conf=timeout={COME_SECONDS:.0f}",
        ]

    def __enter__(self) -> "Group":
        self._thread.start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._over.set()
        self._thread.join()
        message = "" if error is None else str(error) or kind.__name__
        with suppress(*StoreProblem):
            self._store.set(self._key("ended", self._number), message)
            if self._number == 0:  # the store ends with this process
                _wait(lambda: all(self._ended(number) is not None for number in self._beats), PARTING_SECONDS)

    def cause(self) -> str | None:
        """What another node knows of why the processes of this one failed; waits some seconds for it."""
        before = {number: beat for number, (beat, _) in self._beats.items()}
        found: list[str] = []

        def asked() -> bool:
            found.extend([problem for problem in [self.problem or self._look()] if problem])
            return bool(found)

        if _wait(asked, PARTING_SECONDS):
            return found[0]
        silent = [n for n, (beat, _) in self._beats.items() if beat == before[n] and self._ended(n) is None]
        return f"node {self._hosts[silent[0]]} is gone." if silent else None

    def _key(self, kind: str, number: int) -> str:
        return f"vapi/{self._job['id']}/{kind}/{number}"

    def _ended(self, number: int) -> str | None:
        """What a node said when it ended, "" if it ended well; None while it works."""
        key = self._key("ended", number)
        return self._store.get(key).decode() if self._store.check([key]) else None

    def _watch(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            if (problem := self._look()) is not None:
                self.problem = problem
                os.kill(os.getpid(), signal.SIGTERM)  # torchrun's agent ends its processes, and raises
                return

    def _look(self) -> str | None:
        """What is wrong with the other nodes, after one look at them; tells them that this one is here."""
        try:
            if self._number == 0:
                return self._look_at_others()
            self._store.add(self._key("beat", self._number), 1)
            message = self._ended(0)
        except StoreProblem:
            return "the first node is gone."
        return f"on the first node: {message}" if message else None

    def _look_at_others(self) -> str | None:
        for number, (before, heard) in self._beats.items():
            ended, beat = self._ended(number), self._store.add(self._key("beat", number), 0)
            if ended:
                return f"on node {self._hosts[number]}: {ended}"
            if beat != before:
                self._beats[number] = (beat, time.monotonic())
            elif ended is None and time.monotonic() - heard > GONE_SECONDS:
                return f"node {self._hosts[number]} was not heard of for {GONE_SECONDS:.0f} s."
        return None


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether something has come about within some time."""
    end = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < end:
        time.sleep(0.1)
    return met


# The first node


@contextmanager
def gathered(nodes: int, processes: int, arguments: list[str], seconds: float = COME_SECONDS) -> Iterator[Group]:
    """Waits for the other nodes, as the first one.

    Args:
        processes: of each node.
        arguments: of `python -m pipelines.stages`, which all run.
        seconds: in which all have to come.

    Raises:
        VapiError: they do not come, one of them would run something else, or the address is not of this machine.
    """
    host, port = rendezvous()
    job = {"id": secrets.token_hex(8), "arguments": arguments, "nodes": nodes, "processes": processes}
    job["environment"] = {name: os.environ[name] for name in CARRIED if name in os.environ}
    token = WORK / "nodes" / job["id"]  # type: ignore[operator]
    with only_one("nodes", lambda holder: print(f"waits for process {holder}, which has the nodes.", file=sys.stderr)):
        token.parent.mkdir(parents=True, exist_ok=True)
        token.write_text(secrets.token_hex(8))
        try:
            store = _serve(host, port)
            mine = facts(token.read_text())
            store.set(JOB, json.dumps(job))
            hosts = [socket.gethostname(), *_admit(store, mine, nodes, seconds)]
            with Group(store, job, 0, hosts) as group:
                yield group
        finally:
            token.unlink(missing_ok=True)


def _serve(host: str, port: int) -> Any:
    try:
        return _open_store(host, port, serve=True)
    except StoreProblem as error:
        in_use = "EADDRINUSE" in str(error)
        problem = f"port {port} is in use here" if in_use else f"this machine cannot be reached at {host}:{port}"
        remedy = "It names an address of the first node, where the stage is started, and a port that is free there."
        raise VapiError(f"{RENDEZVOUS}: {problem}. {remedy}") from None


def _admit(store: Any, mine: dict[str, str], nodes: int, seconds: float) -> list[str]:
    """Waits for the others and gives them their numbers, or tells all why they cannot begin; returns their names."""
    host, port = rendezvous()
    print(f"waits for {nodes - 1} more of {nodes} nodes at {host}:{port}, {seconds:.0f} s at most.", file=sys.stderr)
    came: list[dict[str, str]] = []
    problem: tuple[int, str] | None = None
    end = time.monotonic() + seconds
    while len(came) < nodes - 1 and problem is None:
        key = f"vapi/came/{len(came) + 1}"
        if store.check([key]):
            came.append(json.loads(store.get(key)))
            if differs := difference(mine, came[-1]):
                problem = len(came), differs
        elif time.monotonic() > end:
            told = f"{len(came) + 1} of {nodes} nodes were here after {seconds:.0f} s."
            remedy = f"Run `vapi node` on the others, with {RENDEZVOUS}={host}:{port}, or lower launch.nodes."
            problem = 0, f"{told} {remedy}"
        else:
            time.sleep(0.1)
    for number, node in enumerate(came, 1):
        refused = None
        if problem is not None:
            refused = problem[1] if problem[0] in (0, number) else f"node {came[problem[0] - 1]['host']} was refused."
        store.set(f"vapi/answer/{number}", json.dumps({"host": node["host"], "refused": refused}))
    if problem is None:
        return [node["host"] for node in came]
    _wait(lambda: all(store.check([f"vapi/heard/{number}"]) for number in range(1, len(came) + 1)), PARTING_SECONDS)
    number, text = problem
    if number == 0:
        raise ParameterError("launch.nodes", text)
    raise VapiError(f"node {came[number - 1]['host']} was refused: {text}")


# The others


@contextmanager
def joined(job: dict[str, Any]) -> Iterator[Group | None]:
    """Comes to the first node for a job that it has announced; None where the job has all its nodes.

    Raises:
        VapiError: the first node refuses this one, or is gone.
    """
    host, port = rendezvous()
    token = Path(job["environment"].get("VAPI_WORK", WORK)) / "nodes" / job["id"]
    try:
        store = _open_store(host, port, serve=False)
        number = store.add("vapi/comers", 1)
        if number >= job["nodes"]:
            yield None
            return
        mine = facts(token.read_text() if token.is_file() else "") | {"host": socket.gethostname()}
        store.set(f"vapi/came/{number}", json.dumps(mine))
        while not store.check([f"vapi/answer/{number}"]):
            time.sleep(0.1)
        answer = json.loads(store.get(f"vapi/answer/{number}"))
        store.set(f"vapi/heard/{number}", "")
    except StoreProblem:
        raise VapiError("the first node is gone.") from None
    if answer["refused"]:
        raise VapiError(f"the first node refused this one: {answer['refused']}")
    with Group(store, job, number, [socket.gethostname()]) as group:
        yield group
