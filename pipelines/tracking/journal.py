"""The journal of a run: what a stage reports goes to local files first, so that it is kept without a tracking server.

A journal is a directory named by the run's key, with `run.json` (what the run is), `metrics.jsonl` (one line per
report) and `images` (the pictures that a line names). A process killed in the middle loses at most the line it was
writing. `scores.json` has what other stages have found out about the outputs of the run, with pictures in `scored`; it
outlives the run, which may be made anew with the same outputs. `system.jsonl` has the load of the machine, by who sends
the journal.

Two locks, which end with the process that has them: `alive.lock` is had by the stage that reports, so that whoever
finds a journal RUNNING can tell a stage at work from a killed one; `sending.lock` by who sends the journal to MLflow.
"""

import dataclasses
import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO

from pipelines.config.paths import WORK
from vapi_core.errors import FileError
from vapi_core.files import atomic_path, read_json, write_json

JOURNALS = WORK / "tracking"
Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True)
class Header:
    """What identifies and describes a run, apart from its metrics."""

    experiment: str
    name: str
    key: str
    start_time: int  # milliseconds since 1970, as MLflow has them
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    parent: str | None = None  # name of the parent run; its key is `parent_key(experiment, parent)`
    dataset: dict[str, str] | None = None  # name, digest, source_type, source and profile, as MLflow has a data set


@dataclass(frozen=True)
class Entry:
    """Metrics and images reported at one moment."""

    time: int
    step: int
    metrics: dict[str, float]
    images: dict[str, str] = field(default_factory=dict)  # name -> PNG file, relative to the journal


@dataclass(frozen=True)
class Scores:
    """What one stage has found out about the outputs of another."""

    time: int  # milliseconds since 1970
    outputs: str  # hash of the outputs
    metrics: dict[str, float]
    images: list[Entry] = field(default_factory=list)  # of the outputs, by their steps

    @classmethod
    def read(cls, content: dict[str, Any]) -> "Scores":
        return cls(**content | {"images": [Entry(**entry) for entry in content.get("images", [])]})


class Journal:
    """The files of one run. Reading raises FileError where one is missing or damaged."""

    def __init__(self, root: Path, key: str):
        self.directory = root / key
        self._header = self.directory / "run.json"
        self._entries = self.directory / "metrics.jsonl"
        self._system = self.directory / "system.jsonl"
        self._scores = self.directory / "scores.json"
        self._alive: TextIO | None = None

    def begin(self, header: Header, **state: Any) -> None:
        """Starts the journal anew; scores stay."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._entries.write_text("")
        self._system.unlink(missing_ok=True)
        shutil.rmtree(self.directory / "images", ignore_errors=True)
        self._write(header, **{"status": "RUNNING", "end_time": None, "artifacts": [], "uploaded": False, **state})

    def live(self) -> None:
        """Lets others see that this process reports, until it ends or `rest` is called."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._alive = self._lock_file("alive")
        fcntl.flock(self._alive, fcntl.LOCK_SH)  # had exclusively for moments only; see `unattended`

    def rest(self) -> None:
        if self._alive is not None:
            self._alive.close()
            self._alive = None

    @contextmanager
    def unattended(self) -> Iterator[bool]:
        """Whether no process reports here; if so, none begins to for the duration of the block, which must be short."""
        with self._lock_file("alive") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    @contextmanager
    def sending(self, wait: bool = False) -> Iterator[bool]:
        """Whether this process is the one that sends, for the duration of the block. With `wait` it becomes that."""
        with self._lock_file("sending") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    def _lock_file(self, name: str) -> TextIO:
        return (self.directory / f"{name}.lock").open("w")

    def _write(self, header: Header, **state: Any) -> None:
        write_json(self._header, {"header": dataclasses.asdict(header), **state})

    def update(self, **state: Any) -> None:
        """Changes some of status, end_time, artifacts and uploaded."""
        write_json(self._header, {**self._read(), **state})

    def append(self, entry: Entry) -> None:
        self._append(self._entries, entry)

    def append_system(self, entry: Entry) -> None:
        """Adds to the load of the machine; for the process that has `sending`."""
        self._system.touch()
        self._append(self._system, entry)

    def _append(self, path: Path, entry: Entry) -> None:
        line = json.dumps(dataclasses.asdict(entry)) + "\n"
        with path.open("r+b") as file:
            end = file.seek(0, 2)
            if end and (file.seek(end - 1), file.read(1))[1] != b"\n":  # a line torn by a kill
                file.write(b"\n")
            file.write(line.encode())

    def keep_image(self, source: Path, folder: str, name: str, step: int) -> str:
        """Copies a PNG to a folder of the journal, whole or not at all; where it is there."""
        file = Path(folder, f"{name.replace('/', '~')}-{step}.png")
        with atomic_path(self.directory / file) as temporary:
            shutil.copyfile(source, temporary)
        return str(file)

    @property
    def exists(self) -> bool:
        return self._header.is_file()

    def _read(self) -> dict[str, Any]:
        content = read_json(self._header, self.remedy)
        if not isinstance(content, dict) or not isinstance(content.get("header"), dict):
            raise FileError(self._header, "the file is damaged (it does not say which run it is of).", self.remedy)
        return content

    @property
    def remedy(self) -> str:
        return f"What is left there cannot be sent; to be rid of it, remove {self.directory}."

    def header(self) -> Header:
        try:
            header = Header(**self._read()["header"])
        except TypeError as error:
            raise FileError(self._header, f"the file is damaged ({error}).", self.remedy) from None
        if not isinstance(header.start_time, int):
            raise FileError(self._header, "the file is damaged (start_time is no number).", self.remedy)
        return header

    def state(self) -> dict[str, Any]:
        """status, end_time, artifacts and uploaded."""
        state = {name: value for name, value in self._read().items() if name != "header"}
        if "status" not in state or "uploaded" not in state:
            raise FileError(self._header, "the file is damaged (it does not say what the run came to).", self.remedy)
        return state

    def scores(self) -> dict[str, Scores]:
        """Name of a stage, or a part of one -> its scores of this run's outputs."""
        if not self._scores.is_file():
            return {}
        try:
            return {source: Scores.read(scores) for source, scores in read_json(self._scores, self.remedy).items()}
        except (TypeError, AttributeError) as error:
            raise FileError(self._scores, f"the file is damaged ({error}).", self.remedy) from None

    def keep_scores(self, source: str, scores: Scores) -> None:
        """Keeps scores instead of earlier ones of the same source."""
        kept = {name: dataclasses.asdict(other) for name, other in self.scores().items()}
        write_json(self._scores, kept | {source: dataclasses.asdict(scores)})

    def last_sign(self) -> int:
        """When the stage last reported, in milliseconds since 1970."""
        return max(path.stat().st_mtime_ns for path in (self._header, self._entries) if path.exists()) // 1_000_000

    def entries(self, start: int = 0) -> tuple[list[Entry], int]:
        """The reports from a byte of the file on, and where the next ones will begin; a torn line is left out."""
        return self._read_entries(self._entries, start)

    def system(self) -> list[Entry]:
        """The load of the machine while the stage ran, as far as it was sent meanwhile."""
        return self._read_entries(self._system, 0)[0] if self._system.is_file() else []

    def _read_entries(self, path: Path, start: int) -> tuple[list[Entry], int]:
        try:
            with path.open("rb") as file:
                file.seek(start)
                content = file.read()
        except FileNotFoundError:
            raise FileError(path, "the file is missing.", self.remedy) from None
        whole = content[: content.rfind(b"\n") + 1]  # the last line may be on its way
        entries = []
        for line in whole.splitlines():
            try:
                entries.append(Entry(**json.loads(line)))
            except (ValueError, TypeError):
                continue
        return entries, start + len(whole)


def all_journals(root: Path) -> tuple[list[Journal], list[str]]:
    """Every journal below `root`, oldest run first, and what is wrong with those that cannot be read."""
    journals, problems = dict[Journal, int](), list[str]()
    for path in sorted(root.glob("*/run.json")):
        journal = Journal(root, path.parent.name)
        try:
            journal.state()
            journals[journal] = journal.header().start_time
        except FileError as error:
            problems.append(str(error))
    return sorted(journals, key=lambda journal: journals[journal]), problems
