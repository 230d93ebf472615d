"""Stops a process of a test at its n-th write and tells the test, which kills whom it likes; imported at Python's
start.

`tests/test_kills.py` puts this folder on the path of DVC, of its stages and of their uploaders. Moments are counted,
not timed. A write is a file below the checkout that is opened to write, renamed, linked or removed; the moment is just
before. Of `dvc.lock`, which DVC writes in place, the calls of functions are counted too, until DVC's next write.
"""

import itertools
import os
import socket
import sys

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
ROOT, LOG, MOMENT = (os.environ.get(f"MOMENTS_{name}", "") for name in ("ROOT", "LOG", "AT"))


def role(arguments):
    """Which of the three this process is; None: another one."""
    if arguments[1:3] == ["-m", "pipelines.stages"]:
        return "stage"
    if arguments[1:4] == ["-m", "pipelines.tracking", "follow"]:
        return "uploader"
    return "dvc" if "repro" in arguments and os.path.basename(arguments[1]) == "dvc" else None


class Clock:
    """Counts the moments of this process in one stage."""

    def __init__(self, who):
        self.who, self.stage = who, os.environ.get("DVC_STAGE", "") if who != "dvc" else ""
        self.count, self.calls, self.seen = itertools.count(1), 0, set()

    def __call__(self, event, arguments):
        if event == "subprocess.Popen" and self.who == "dvc":
            if stage := (arguments[3] or {}).get("DVC_STAGE"):
                self.stage, self.count = stage, itertools.count(1)
        elif self.stage and (moment := self.moment(event, arguments)):
            self.end_calls()
            self.tick(self.who, next(self.count), moment)
            if moment == "open dvc.lock":
                self.calls = 0
                sys.setprofile(self.call)

    def call(self, frame, what, _):
        self.calls += what == "call"
        if what == "call" and not LOG:
            self.tick("lock", self.calls, "")

    def end_calls(self):
        sys.setprofile(None)
        if LOG and self.calls:
            self.note("lock", "\n" * self.calls)
        self.calls = 0

    def moment(self, event, arguments):
        """What happens, if it counts; of the uploader every first look at a file, as it reads more than it writes."""
        if event == "import" and self.who == "uploader" and arguments[0] == "mlflow":
            return self.first("import mlflow")
        path = self.inside(arguments[0]) if event in CHANGES or event == "open" else None
        if path is None or (event == "open" and self.who != "uploader" and not arguments[2] & WRITING):
            return None
        return self.first(path) if self.who == "uploader" else f"{event} {path}"

    def first(self, moment):
        if moment in self.seen:
            return None
        self.seen.add(moment)
        return moment

    @staticmethod
    def inside(path):
        """The path below the checkout; None for what lies elsewhere, and for code."""
        if isinstance(path, int) or path is None:
            return None
        path = os.path.relpath(os.path.abspath(os.fsdecode(path)), ROOT)
        return None if path.startswith("..") or "__pycache__" in path or path.endswith(".py") else path

    def tick(self, clock, number, moment):
        if LOG:
            self.note(clock, f"{moment}\n")
        elif f"{clock} {self.stage} {number}" == MOMENT:
            with socket.socket(socket.AF_UNIX) as test:
                test.connect(os.environ["MOMENTS_SOCKET"])
                test.sendall(b"%d\n" % os.getpid())
                test.recv(1)  # until the test has killed

    def note(self, clock, text):
        file = os.open(f"{LOG}/{clock} {self.stage}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(file, text.encode())
        os.close(file)


if ROOT and (who := role(sys.orig_argv)):
    sys.addaudithook(Clock(who))
