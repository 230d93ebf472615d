"""A part in a process of its own: its time limit, what it has measured so far, and how it ended."""

import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.measure import Results
from vapi_core import distributed
from vapi_core.files import read_json, write_json

# children are forked from a server that has imported everything and touched no GPU, so that they start at once
CONTEXT = multiprocessing.get_context("forkserver")
PRELOADED = ("benchmarks.gpu.parts", "torch.distributed.checkpoint", "torch.distributed.fsdp", "torch._dynamo")
LAST_LINES, LONGEST_MESSAGE = 3, 400  # of what a process said before it died; characters

Pieces = Iterator[Results]
Status = Literal["done", "failed", "stopped", "skipped"]


class Skipped(Exception):
    """A part cannot run here; the message says why."""


@dataclass(frozen=True)
class Outcome:
    """How a part ended, and what it measured until then."""

    part: str
    status: Status
    seconds: float = 0.0
    message: str = ""
    results: Results = field(default_factory=dict)


def run_alone(
    name: str, work: Callable[..., Pieces], arguments: tuple[Any, ...], limit: float, folder: Path
) -> Outcome:
    """Runs `work(*arguments)` in a process of its own, for `limit` seconds at most, and ends all that it has started.

    `work` yields its results piece by piece. They and all that it prints go to files in `folder`.
    """
    CONTEXT.set_forkserver_preload(list(PRELOADED))
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # to ask for GPUs then does not touch them: a part can fork
    file, log = folder / f"{name}.json", folder / f"{name}.log"
    file.unlink(missing_ok=True)
    process = CONTEXT.Process(target=_work, args=(name, work, arguments, file, log))
    started = time.monotonic()
    process.start()
    try:
        process.join(limit)
        seconds, late = time.monotonic() - started, process.is_alive()
    finally:  # after Ctrl-C too
        _end(process)
    known = read_json(file) if file.is_file() else asdict(Outcome(name, "failed"))
    if known["message"] or known["status"] == "done":
        return Outcome(**known | {"seconds": seconds})
    if late:
        return Outcome(name, "stopped", seconds, f"stopped after {limit:.0f} s", known["results"])
    return Outcome(name, "failed", seconds, _death(process.exitcode, log), known["results"])


def _end(process: Any) -> None:
    """Ends a process, and those that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()  # if it had not yet a group of its own
    process.join()


def _work(name: str, work: Callable[..., Pieces], arguments: tuple[Any, ...], file: Path, log: Path) -> None:
    os.setsid()
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = (
        "1"  # to ask for GPUs then does not touch them: processes can be forked
    )
    with open(log, "wb") as output:
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
    results: Results = {}

    def tell(status: Status, message: str = "") -> None:
        write_json(file, asdict(Outcome(name, status, 0.0, message, results)))

    try:
        for piece in work(*arguments):
            results |= piece
            tell("failed")  # so far: it is not done
        tell("done")
    except Skipped as error:
        tell("skipped", str(error))
    except Exception as error:
        traceback.print_exc()
        tell("failed", first_line(error))
    sys.stdout.flush()
    sys.stderr.flush()


def first_line(error: Exception) -> str:
    """What an error says, as much as fits a row of the page."""
    line = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {line}"[:LONGEST_MESSAGE]


def _death(code: int | None, log: Path) -> str:
    """Why a process is gone that could not say it itself."""
    ended = f"ended by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended with code {code}"
    said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.is_file() else []
    return ": ".join([ended, *([" / ".join(said[-LAST_LINES:])] if said else [])])[:LONGEST_MESSAGE]


# Processes within a part


def run_group(processes: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `function(device, *arguments)` returns on each of so many processes, one a GPU, by rank.

    Call it before this process has touched a GPU: the processes are forked from it. With `processes` 1 there is a group
    too, which FSDP2 needs.

    Raises:
        RuntimeError: one of them has failed, or was killed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in range(processes)]
    children = [
        context.Process(target=_rank, args=(rank, processes, port, pipes[rank][1], function, arguments), daemon=True)
        for rank in range(processes)
    ]
    for child in children:
        child.start()
    for _, writer in pipes:
        writer.close()
    ranks = {reader: rank for rank, (reader, _) in enumerate(pipes)}
    results: dict[int, Any] = {}
    while len(results) < processes:
        for reader in wait([reader for reader, rank in ranks.items() if rank not in results]):
            assert isinstance(reader, Connection)
            rank = ranks[reader]
            try:
                done, value = reader.recv()
            except EOFError:
                children[rank].join()
                done, value = False, f"ended with code {children[rank].exitcode}"
            if not done:
                raise RuntimeError(f"process {rank}: {value}")
            results[rank] = value
    for child in children:
        child.join()
    return [results[rank] for rank in range(processes)]


def _rank(rank: int, processes: int, port: int, pipe: Any, function: Callable[..., Any], arguments: tuple) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    try:
        result = function(distributed.start(own_device()), *arguments)
        distributed.stop()
        pipe.send((True, result))
    except Exception as error:
        traceback.print_exc()
        pipe.send((False, first_line(error)))


def run_apart(function: Callable[..., Any], *arguments: Any) -> int | None:
    """Runs `function(*arguments)` in a process forked from this one; returns its exit code, below 0 where a signal
    ended it.

    Raises:
        RuntimeError: the function raised something.
    """
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_apart, args=(writer, function, arguments), daemon=True)
    process.start()
    writer.close()
    process.join()
    if reader.poll() and process.exitcode == 1:
        raise RuntimeError(reader.recv())
    return process.exitcode


def _apart(pipe: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        function(*arguments)
    except Exception as error:
        traceback.print_exc()
        pipe.send(first_line(error))
        sys.exit(1)


def own_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
