"""A stage on several processes: it starts itself again under torchrun, and what goes wrong there is told once.

With several nodes, each runs torchrun's agent for its own processes (`nodes`).
"""

import ctypes
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING

from pipelines.messages import ERROR, LOST, Interrupted
from vapi_core.errors import VapiError

if TYPE_CHECKING:
    from pipelines.frame.nodes import Group


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
