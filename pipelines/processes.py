"""Long processes that leave nothing running, whoever is killed.

`run` starts a command under a guard, a small process of its own. The guard ends the command and all its descendants
when the command ends, when it is told to, and when its caller is gone, even by kill -9: it sees its standard input
close. Only one command of a name runs at a time, here or in another process; one that outlived a killed guard is ended
first, found by its mark in the environment of the process. Names are those of one folder `WORK`.
"""

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from pipelines.config.paths import WORK

MARK = "VAPI_PROCESS"  # environment variable: which command a process belongs to
GRACE_SECONDS = 10.0  # between asking a process to end and ending it
STARTING_SECONDS = 5.0  # in which a new process has its environment at the latest; its age is known up to a second
WATCH_SECONDS = 1.0  # between two looks at whether DVC is still there
SHELLS = ("sh", "ash", "bash", "busybox", "dash", "fish", "ksh", "zsh")
ENDED = 128 + int(
    signal.SIGTERM
)  # exit code of a command that was ended, as a shell tells it, whatever ended its processes


class Guarded:
    """A command under a guard. Used as a context, it has ended when the block has."""

    def __init__(self, command: Sequence[str], name: str, environment: Mapping[str, str] | None = None):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.processes", name, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=dict(os.environ if environment is None else environment),
            start_new_session=True,  # out of reach of a Ctrl-C that is meant for the caller
        )

    def __enter__(self) -> "Guarded":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def lines(self) -> Iterator[str]:
        """Standard output and error, until all that wrote there have ended."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            yield line.rstrip()

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def wait(self) -> int:
        """Exit code of the command; ENDED if it was ended on request."""
        return self._process.wait()

    def end(self) -> int:
        """Ends the command if it still runs."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self._process.wait()


_live: set[Guarded] = set()
_ending = threading.Event()


def run(command: Sequence[str], name: str, environment: Mapping[str, str], log: Callable[[str], object]) -> int:
    """Runs a command to its end, its output line by line to `log`; returns its exit code."""
    with Guarded(command, name, environment) as process:
        _live.add(process)
        try:
            if _ending.is_set():  # a retry, say, of what was just ended
                process.end()
            for line in process.lines():
                log(line)
            return process.wait()
        finally:
            _live.discard(process)


def end_all() -> None:
    """Ends every command that `run` has started in any thread, and all that it will start: this process is to end."""
    _ending.set()
    for process in list(_live):
        process.end()


def mark(name: str) -> str:
    """Of the processes of a command: another clone on this machine may run one of the same name."""
    return str(WORK.resolve() / name)


def marked(name: str) -> list[psutil.Process]:
    """Live processes that belong to the command of a name."""
    found, wanted = [], mark(name)
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and _environment(process).get(MARK) == wanted:
                found.append(process)
        except psutil.Error:  # gone, or somebody else's
            continue
    return found


def _environment(process: psutil.Process) -> dict[str, str]:
    """Of a process; one that was started this moment shows none yet."""
    while not (environment := process.environ()) and time.time() - process.create_time() < STARTING_SECONDS:
        time.sleep(0.005)
    return environment


def working_directories() -> list[Path]:
    """Of all live processes, as far as the system tells."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            found.append(Path(process.cwd()))
    return found


def end_marked(name: str) -> None:
    """Ends every process of a name: interrupt, so that it can tidy up; then kill."""
    processes = marked(name)
    for process in processes:
        _signal(process, signal.SIGINT)
    _, alive = psutil.wait_procs(processes, timeout=GRACE_SECONDS)
    while alive:
        for process in alive:
            _signal(process, signal.SIGKILL)
        psutil.wait_procs(alive, timeout=GRACE_SECONDS)
        alive = marked(name)  # what they started meanwhile


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    with suppress(psutil.Error):
        process.send_signal(number)


@contextmanager
def only_one(name: str, waits: Callable[[str], object] = lambda holder: None) -> Iterator[None]:
    """Waits until no other process has this name.

    Args:
        waits: told the number of the process that has it, if it has one; "" if that is not known.
    """
    directory = WORK / "running"
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / f"{name}.lock").open("a+") as lock:  # its holder's death gives it back, however it came
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            waits(lock.read())
            fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def end_with_dvc() -> None:
    """Makes this process end when the DVC that runs it as a stage is gone, even by kill -9; without DVC, nothing.

    As Ctrl-C would, then by kill: an orphan would race the next attempt. DVC runs a stage by a shell, which may be in
    between.
    """
    if "DVC_STAGE" in os.environ:
        told = "DVC, which ran this stage, is gone: the stage ends too. Run the same command again to go on."
        threading.Thread(target=_end_after, args=(_callers(), told), daemon=True).start()


def end_with_parent() -> None:
    """Makes this process end when the one that started it is gone, even by kill -9."""
    told = "The process that started this one is gone: it ends too."
    if (parent := psutil.Process().parent()) is not None:
        threading.Thread(target=_end_after, args=([parent], told), daemon=True).start()


def _callers() -> list[psutil.Process]:
    """The processes above this one, up to the first that is no shell."""
    callers, process = list[psutil.Process](), psutil.Process()
    while (parent := process.parent()) is not None:
        callers.append(parent)
        if parent.name() not in SHELLS:
            break
        process = parent
    return callers


def _end_after(callers: list[psutil.Process], told: str) -> None:
    while callers and not any(map(_gone, callers)) and not _adopts(callers[-1]):
        time.sleep(WATCH_SECONDS)
    with suppress(OSError):  # nobody may be left to read it
        os.write(2, f"{told}\n".encode())
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def _adopts(process: psutil.Process) -> bool:
    """Whether a process is the one that the system gives orphans to: DVC was gone before anybody could look."""
    with suppress(psutil.Error):
        if process.pid == 1:
            return not any("dvc" in part or "pipelines" in part for part in process.cmdline())
        return process.name() == "systemd"
    return False


def _gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class _Guard:
    """The process beside the command."""

    def __init__(self, name: str):
        self._name = name
        self._starting = threading.Lock()
        self._ours = False  # whether what runs under the name is ours to end; if not, it is another guard's
        self._ending = False  # the command's own code then tells only which of its processes a signal met first

    def run(self, command: list[str]) -> int:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: threading.Thread(target=self._end).start())
        threading.Thread(target=self._end_with_caller, daemon=True).start()
        with only_one(self._name):
            with self._starting:
                end_marked(self._name)
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, env={**os.environ, MARK: mark(self._name)}
                )
                self._ours = True
            code = process.wait()
            end_marked(self._name)
        return ENDED if self._ending else code

    def _end_with_caller(self) -> None:
        os.read(sys.stdin.fileno(), 1)  # returns when the caller closes it or is gone
        self._end()

    def _end(self) -> None:
        with self._starting:
            self._ending = True
            if self._ours:
                end_marked(self._name)
            os._exit(ENDED)


if __name__ == "__main__":
    sys.exit(_Guard(sys.argv[1]).run(sys.argv[2:]))
