"""How a command ends: with one message where the user or the machine is at fault, as Ctrl-C or SIGTERM asks, or well.

A stage on several processes starts itself again under torchrun; what goes wrong there is told once. With several nodes,
each runs torchrun's agent for its own processes (`nodes`).
"""

import ctypes
import json
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec

from vapi_core.errors import FileError, VapiError, file_problem

if TYPE_CHECKING:
    from pipelines.frame.nodes import Group

ERROR = "error: "
LOST = "the connection to another process was lost."
LOST_CONNECTION = r"gloo.* (closed|reset) by peer|NCCL.* remote (process|peer)"  # how torch tells it
SIGNALS = (signal.SIGINT, signal.SIGTERM)
P = ParamSpec("P")


class Interrupted(KeyboardInterrupt):
    """A signal asks this process to end: Ctrl-C, or SIGTERM, which means the same."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number

    @property
    def code(self) -> int:
        """The exit code, as a shell tells it."""
        return 128 + self.number

    def __str__(self) -> str:
        return f"stopped by {'Ctrl-C' if self.number == signal.SIGINT else signal.Signals(self.number).name}"


def _raise(number: int, frame: object) -> None:
    raise Interrupted(number)


def _end_at_once(number: int, frame: object) -> None:
    ended = Interrupted(number)
    _say(ended)
    os._exit(ended.code)


def _say(ended: Interrupted) -> None:
    if "TORCHELASTIC_ERROR_FILE" not in os.environ:  # of several processes their launcher says it
        os.write(2, f"{ended}\n".encode())


def heed_signals(handler: Any = _end_at_once) -> dict[int, Any]:
    """Has both signals call `handler`, but for one that the caller's shell has ignored; returns what they did before.

    The default ends the process at once: for the seconds of its imports, when there is nothing yet to tidy up.
    """
    heeded = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in heeded}


@contextmanager
def _interruptible() -> Iterator[None]:
    before = heed_signals(_raise)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def one_message(command: Callable[P, int | None]) -> Callable[P, int]:
    """Decorates what a command does; returns its exit code.

    An error that is the user's or the machine's to mend is one message and code 1; Ctrl-C is one line and code 130,
    SIGTERM one line and 143. A programming error keeps its traceback.
    """

    @wraps(command)
    def whole(*arguments: P.args, **options: P.kwargs) -> int:
        for stream in (sys.stdout, sys.stderr):  # names of files need not be text
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        try:
            with _interruptible():
                code = command(*arguments, **options) or 0
                sys.stdout.flush()
                return code
        except KeyboardInterrupt as error:
            ended = error if isinstance(error, Interrupted) else Interrupted(signal.SIGINT)
            _say(ended)
            return ended.code
        except BrokenPipeError:  # whoever reads, `head` say, has enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes once more at its end
            return 128 + signal.SIGPIPE
        except BaseException as error:
            if (known := explain(error)) is None:
                raise
            tell(known)
            return 1

    return whole


def explain(error: BaseException) -> VapiError | None:
    """An error as a message for the user; None for a programming error."""
    if isinstance(error, VapiError):
        return error
    if "TORCHELASTIC_ERROR_FILE" in os.environ and re.search(LOST_CONNECTION, str(error)):
        return VapiError(LOST)
    if (problem := file_problem(error)) is None:
        return None
    name = getattr(error, "filename2", None) or getattr(error, "filename", None)
    return FileError(os.fsdecode(name), problem) if isinstance(name, str | bytes) else VapiError(problem)


def tell(error: VapiError) -> None:
    """The message goes to stderr, or to torchrun, which has it from every process."""
    message = f"{ERROR}{error}"
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"message": message, "timestamp": int(time.time())}, file)
    else:
        print(message, file=sys.stderr)


class ProcessEnded(VapiError):
    """A process under torchrun ended without a message of its own for the user."""


def relaunch(processes: int, nodes: int = 1) -> int:
    """Runs this program (`python -m MODULE ...`) as so many processes of each node under torchrun.

    Raises:
        VapiError: what the processes tell the user, as one would; with several nodes as `nodes.gathered` too.
        Interrupted: a signal has ended them.
    """
    module = sys.modules["__main__"].__spec__.name  # type: ignore[union-attr]
    program = ["--module", module, *sys.argv[1:]]
    if nodes == 1:
        _run_agent(["--standalone", f"--nproc-per-node={processes}", *program])
        return 0
    from pipelines.frame.nodes import gathered  # late: several seconds of torch

    with gathered(nodes, processes, sys.argv[1:]) as group:
        run_with_others(group, program)
    return 0


def run_with_others(group: "Group", program: list[str]) -> None:
    """Runs this node's processes, as one of several nodes. Raises as `relaunch`, whichever node the error is from."""
    try:
        _run_agent([*group.options, *program])
    except Interrupted:
        if group.problem is None:
            raise
        raise VapiError(group.problem) from None
    except ProcessEnded as error:
        raise VapiError(group.cause() or str(error)) from None


def _run_agent(arguments: list[str]) -> None:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    logging.disable(logging.ERROR)  # torchrun's own account of a failure buries the message
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torchrun would say so; each stage sets its threads
    try:
        run(parse_args(arguments))
    except ChildFailedError as error:
        told = {str(failure.message) for failure in error.failures.values()}
        messages = sorted(message.removeprefix(ERROR) for message in told if message.startswith(ERROR))
        if causes := [message for message in messages if message != LOST]:
            raise VapiError(f"\n{ERROR}".join(causes)) from None
        rank, failure = error.get_first_failure()
        ended = f"process {rank} ended with code {failure.exitcode}; what it said stands above."
        raise ProcessEnded(LOST if LOST in str(failure.message) else ended) from None
    except SignalException as error:
        raise Interrupted(error.sigval) from None


def live_with_launcher() -> None:
    """Makes this process, one that torchrun started, end with it: an orphan would race the stage's next attempt."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # torchrun was killed and can send nothing
