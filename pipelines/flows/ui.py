"""`make ui`: Prefect server, MLflow server and a worker on this machine, with deployments and dashboards, until Ctrl-C.

What PREFECT_API_URL or MLFLOW_TRACKING_URI (http) names is used, not started. The databases are Prefect's and MLflow's
own defaults, or PREFECT_SERVER_DATABASE_CONNECTION_URL and MLFLOW_TRACKING_URI as a database URL, e.g. of PostgreSQL.
The servers answer pages of their own address only; with PREFECT_SERVER_API_AUTH_STRING, user:password, Prefect asks for
it too. Passwords reach the servers by their environment: command lines are for all users of a machine to read.
"""

import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress

import httpx
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import PrefectException
from prefect.settings import PREFECT_SERVER_API_AUTH_STRING
from prefect.workers.process import ProcessWorker

from pipelines.config.paths import WORK
from pipelines.flows.cell import POOL as CELLS
from pipelines.flows.lost import client_of, end_runs_of, look
from pipelines.flows.running import environment
from pipelines.messages import one_message
from pipelines.processes import Guarded
from pipelines.tracking.masking import masked
from vapi_core.errors import VapiError

LOOPBACK = "127.0.0.1"
POOL = "local"
START_SECONDS = 900.0  # on a machine that does nothing else it takes 15
LOGS = WORK / "ui"


class Stopped(Exception):
    """Ctrl-C, or a request to terminate."""


class Service:
    """A server or worker, its output in a file."""

    def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str], stack: ExitStack):
        LOGS.mkdir(parents=True, exist_ok=True)
        self.name, self.log = name, LOGS / f"{name}.log"
        self.process = stack.enter_context(Guarded(command, f"{name}-{os.getpid()}", env))
        threading.Thread(target=self._write, daemon=True).start()

    def _write(self) -> None:
        with self.log.open("w") as file:
            for line in self.process.lines():
                print(masked(line), file=file, flush=True)

    def check(self) -> None:
        """Raises VapiError if it has ended."""
        if not self.process.running:
            end = "\n".join(self.log.read_text().splitlines()[-10:])
            raise VapiError(f"the {self.name} has ended; the end of {self.log}:\n{end}")

    def wait_for(self, url: str) -> None:
        """Returns when the URL answers. Raises VapiError if that takes too long."""
        deadline = time.monotonic() + START_SECONDS
        while not answers(url):
            self.check()
            if time.monotonic() > deadline:
                raise VapiError(f"the {self.name} did not answer at {url} within {START_SECONDS:.0f} s; see {self.log}")
            time.sleep(0.2)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def free_port(preferred: int, host: str) -> int:
    """The preferred port, or any other if that is taken. Raises VapiError if this machine has no such address."""
    for port in (preferred, 0):
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                s.bind((host, port))
                return s.getsockname()[1]
            except OSError as error:
                problem = error
    raise VapiError(f"cannot listen at {host}: {problem}.")


def start_prefect(env: dict[str, str], stack: ExitStack, host: str = LOOPBACK) -> Service:
    port = free_port(4200, host)
    api = f"http://{host}:{port}/api"
    address = {"PREFECT_SERVER_API_HOST": host, "PREFECT_SERVER_API_PORT": str(port)}
    command = [sys.executable, "-m", "pipelines.flows.server"]
    service = Service("prefect-server", command, {"PREFECT_SERVER_UI_API_URL": api} | env | address, stack)
    env["PREFECT_API_URL"] = api
    if (login := server_login()) is not None:
        env["PREFECT_API_AUTH_STRING"] = login
    return service


def server_login() -> str | None:
    """What a server that is started here asks of its clients, user:password."""
    return PREFECT_SERVER_API_AUTH_STRING.value()


def start_mlflow(env: dict[str, str], stack: ExitStack, host: str = LOOPBACK) -> Service:
    port = free_port(5000, host)
    command = ["mlflow", "server", "--host", host, "--port", str(port), "--workers", "1"]
    settings = {
        "MLFLOW_BACKEND_STORE_URI": env["MLFLOW_TRACKING_URI"],
        "MLFLOW_SERVER_ALLOWED_HOSTS": allowed_hosts(host, port, env.get("MLFLOW_SERVER_ALLOWED_HOSTS")),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # half the memory and start-up
    }
    service = Service("mlflow-server", command, env | settings, stack)
    env["MLFLOW_TRACKING_URI"] = f"http://{host}:{port}"
    return service


def allowed_hosts(host: str, port: int, others: str | None) -> str:
    """This machine's own names for a port, and the user's; by default MLflow answers to names like 10.example too."""
    return ",".join([f"{host}:{port}", f"localhost:{port}", *([others] if others else [])])


def create_pools(env: Mapping[str, str]) -> None:
    """The work pools of prefect.yaml, unless they are there. Raises VapiError if the server cannot be asked."""
    template, api = ProcessWorker.get_default_base_job_template(), env["PREFECT_API_URL"]
    try:
        with client_of(env) as client:
            there = {pool.name for pool in client.read_work_pools()}
            for name in {POOL, CELLS} - there:
                pool = WorkPoolCreate(name=name, type=ProcessWorker.type, base_job_template=template)
                client.create_work_pool(pool)
    except httpx.HTTPError as error:
        known = "PREFECT_API_AUTH_STRING is the login that it asks for."
        raise VapiError(masked(f"the Prefect server at {api} does not let us in: {error}. {known}")) from error


def run(command: Sequence[str], env: Mapping[str, str]) -> str:
    """Output of a command. Raises VapiError with all it said if it fails."""
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise VapiError(masked(f"{' '.join(command)} failed:\n{result.stdout}{result.stderr}"))
    return result.stdout


def warning(host: str, login: str | None) -> str | None:
    """What to tell of servers that listen at this address; None where only this machine reaches them."""
    if host in ("localhost", LOOPBACK):
        return None
    told = f"Whoever reaches {host} can see and change the runs in MLflow"
    if login is None:
        return f"{told}, and run code here by Prefect: PREFECT_SERVER_API_AUTH_STRING=user:password has it ask for a login."
    return f"{told}. Both are plain HTTP: use them in a network that you trust, or by SSH."


def serve(stack: ExitStack, host: str) -> None:
    env = environment()
    started: list[tuple[Service, str]] = []
    if "PREFECT_API_URL" not in env:
        service = start_prefect(env, stack, host)
        started.append((service, f"{env['PREFECT_API_URL']}/health"))
    if not env["MLFLOW_TRACKING_URI"].startswith("http"):
        service = start_mlflow(env, stack, host)
        started.append((service, f"{env['MLFLOW_TRACKING_URI']}/health"))
    if started and (told := warning(host, server_login())) is not None:
        print(f"warning: {told}", file=sys.stderr, flush=True)
    for service, url in started:
        service.wait_for(url)
    create_pools(env)
    run([sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"], env)
    dashboards = run([sys.executable, "-m", "pipelines.tracking.dashboards"], env)
    prefect_ui = env["PREFECT_API_URL"].removesuffix("/api")
    print(masked(f"Prefect: {prefect_ui}/deployments"), flush=True)
    print(masked(f"MLflow:  {env['MLFLOW_TRACKING_URI']}"), flush=True)
    print(dashboards, end="")
    print(f"Logs:    {LOGS}. Ctrl-C stops everything.", flush=True)
    over = threading.Event()
    stack.callback(over.set)
    threading.Thread(target=look, args=(env, over), daemon=True).start()
    worker = ["prefect", "worker", "start", "--pool", POOL, "--limit", "4"]
    for turn in itertools.count(1):
        name = f"{socket.gethostname()}-{os.getpid()}-{turn}"
        with ExitStack() as life:
            service = Service("prefect-worker", [*worker, "--name", name], env, life)
            while service.process.running:
                time.sleep(0.5)
                for server, _ in started:
                    server.check()
        print("The worker has ended; another one starts.", file=sys.stderr, flush=True)
        with (
            suppress(httpx.HTTPError, PrefectException),
            client_of(env) as client,
        ):  # where the server is away, the heartbeats tell it
            end_runs_of(name, POOL, client)


@one_message
def main(host: str = LOOPBACK) -> None:
    """Starts all, which listens at this address of this machine."""

    def stop(*_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # ending takes a moment, and is not to be interrupted
        raise Stopped

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        with ExitStack() as stack:
            serve(stack, host)
    except Stopped:
        print("Everything has stopped.", flush=True)


if __name__ == "__main__":
    sys.exit(main())
