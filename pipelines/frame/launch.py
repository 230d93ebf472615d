"""A stage on several processes: it starts itself again under torchrun, and what goes wrong there is told once."""

import ctypes
import logging
import os
import signal
import sys

from pipelines.messages import Interrupted


def relaunch(processes: int) -> int:
    """Runs this program (`python -m MODULE ...`) as so many processes under torchrun; returns the exit code.

    On an error that is the user's to mend, with its message and code 1, as one process would.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    logging.disable(logging.ERROR)  # torchrun's own account of a failure buries the message
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torchrun would say so; each stage sets its threads
    module = sys.modules["__main__"].__spec__.name  # type: ignore[union-attr]
    try:
        run(parse_args(["--standalone", f"--nproc-per-node={processes}", "--module", module, *sys.argv[1:]]))
    except ChildFailedError as error:
        messages = {f.message for f in error.failures.values() if str(f.message).startswith("error: ")}
        rank, failure = error.get_first_failure()
        ended = f"error: process {rank} ended with code {failure.exitcode}; what it said stands above."
        print("\n".join(sorted(messages)) or ended, file=sys.stderr)
        return 1
    except SignalException as error:
        raise Interrupted(error.sigval) from None
    return 0


def live_with_launcher() -> None:
    """Makes this process, one that torchrun started, end with it: an orphan would race the stage's next attempt."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # torchrun was killed and can send nothing
