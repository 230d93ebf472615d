"""What both flows are made of: one DVC command in a task, and tasks that run as their dependencies allow."""

import fcntl
import itertools
import os
import shlex
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.futures import PrefectFuture, as_completed
from prefect.states import State

from pipelines import processes
from pipelines.config.paths import WORK
from pipelines.tracking.masking import masked
from pipelines.tracking.stores import DEFAULT_URI

GPU = "gpu"  # tag of tasks that need one, and name of the limit on how many run at the same time
TAIL = 8  # lines of a failed command's output that its task's message repeats


class CommandFailed(RuntimeError):
    """A command ended with an error."""


def run_command(command: Sequence[str], name: str, gpus: Sequence[str] = ()) -> None:
    """Runs a command from the top of the repository, its output in the log of the task.

    Args:
        name: whoever runs a command under this name waits for, or ends, what another one left; see `processes`.
        gpus: of these the command sees one; without any, whatever is there.

    Raises:
        CommandFailed: with the end of the output.
    """
    logger = get_run_logger()
    tail: deque[str] = deque(maxlen=TAIL)

    def log(line: str) -> None:
        tail.append(masked(line))
        logger.info(tail[-1])

    logger.info(masked(shlex.join(command)))
    with one_gpu(gpus) as choice:
        code = processes.run(command, name, environment() | choice, log)
    if code != 0:
        raise CommandFailed("\n".join([f"{name} ended with exit code {code}. The end of its output:", *tail]))


def environment() -> dict[str, str]:
    """For commands that may work in another directory: the same Python, working files, assets and tracking server."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", DEFAULT_URI)
    local = uri.removeprefix("sqlite:///")
    if local != uri and not local.startswith("/"):
        uri = f"sqlite:///{Path(local).resolve()}"
    return {
        **os.environ,
        "PWD": str(Path.cwd()),  # prefect.yaml builds on it
        "VAPI_WORK": str(WORK.resolve()),
        "VAPI_REPOSITORY": str(Path.cwd()),
        "MLFLOW_TRACKING_URI": uri,
        "DVC_NO_ANALYTICS": "1",
    }


def run_all(
    graph: dict[str, list[str]],
    submit: Callable[[str, list[PrefectFuture]], PrefectFuture],
    parallelism: int,
    finished: Callable[[str, State], Any] = lambda name, state: None,
    end: Callable[[], Any] = processes.end_all,
) -> dict[str, State]:
    """Runs every item of a graph after those it builds on, so many at a time; a failure stops only what builds on it.

    Args:
        graph: item -> the items it builds on.
        submit: starts an item, given the futures of what it builds on.
        finished: told of every item that has ended, well or not.
        end: ends what runs, where this process is to end: tasks wait in threads that nothing else ends.

    Returns:
        The final state of every item.
    """
    waiting, running, futures = dict(graph), dict[PrefectFuture, str](), dict[str, PrefectFuture]()
    states: dict[str, State] = {}
    try:
        while waiting or running:
            for name in [n for n, needs in waiting.items() if all(need in states for need in needs)]:
                if len(running) < parallelism:
                    futures[name] = submit(name, [futures[need] for need in waiting.pop(name)])
                    running[futures[name]] = name
            future = next(iter(as_completed(list(running))))
            future.wait()  # takes over the final state
            name = running.pop(future)
            states[name] = future.state
            finished(name, future.state)
    except BaseException:  # cancelled, or Ctrl-C
        end()
        raise
    return states


def visible_gpus(device: str) -> list[str]:
    """GPUs for tasks whose params have this device, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    if device == "cpu" or not torch.cuda.is_available():
        return []
    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(i) for i in range(count)]


@contextmanager
def one_gpu(gpus: Sequence[str]) -> Iterator[dict[str, str]]:
    """Lends a GPU that nobody in this folder works on, as environment variables; if all are lent, they are shared."""
    if not gpus:
        yield {}
        return
    directory = WORK / "running"
    directory.mkdir(parents=True, exist_ok=True)
    for turn in itertools.count():
        with (directory / f"gpu-{turn}.lock").open("w") as lock:  # which ends with the process that has it
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield {"CUDA_VISIBLE_DEVICES": gpus[turn % len(gpus)]}
            return


def gpu_tags(gpus: Sequence[str]) -> list[str]:
    """Tags of tasks that run on one of these GPUs; sees to it that the limit for GPUs exists."""
    if not gpus:
        return []
    limit_gpus(len(gpus))
    return [GPU]


def limit_gpus(count: int) -> None:
    """Creates the limit unless there is one, which may have been changed in the UI."""
    with get_client(sync_client=True) as client:
        try:
            client.read_concurrency_limit_by_tag(GPU)
        except ObjectNotFound:
            client.create_concurrency_limit(GPU, concurrency_limit=count)
