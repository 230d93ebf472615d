"""How a command ends: well, as Ctrl-C or SIGTERM asks, or with one message where user or machine is at fault."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec

from vapi_core.errors import FileError, VapiError, file_problem

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
    if (problem := file_problem(error)) is None:
        return None
    name = getattr(error, "filename2", None) or getattr(error, "filename", None)
    return FileError(os.fsdecode(name), problem) if isinstance(name, str | bytes) else VapiError(problem)


def tell(error: VapiError) -> None:
    """The message goes to stderr, or to torchrun, which has it from every process."""
    message = f"error: {error}"
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"message": message, "timestamp": int(time.time())}, file)
    else:
        print(message, file=sys.stderr)
