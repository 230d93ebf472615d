"""The journal of a run: what a stage reports goes to local files first, so that no tracking server is needed to keep it.

A journal is a directory named by the run's key, with `run.json` (what the run is) and `metrics.jsonl` (one line per
report). A process killed in the middle loses at most the line it was writing.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipelines.config.paths import WORK
from vapi_core.files import read_json, write_json

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


@dataclass(frozen=True)
class Entry:
    """Metrics reported at one moment."""

    time: int
    step: int
    metrics: dict[str, float]


class Journal:
    """The files of one run."""

    def __init__(self, root: Path, key: str):
        self.directory = root / key
        self._header = self.directory / "run.json"
        self._entries = self.directory / "metrics.jsonl"

    def begin(self, header: Header) -> None:
        """Starts the journal anew."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._entries.write_text("")
        self._write(header, status="RUNNING", end_time=None, artifacts=[], uploaded=False)

    def _write(self, header: Header, **state: Any) -> None:
        write_json(self._header, {"header": dataclasses.asdict(header), **state})

    def update(self, **state: Any) -> None:
        """Changes some of status, end_time, artifacts and uploaded."""
        write_json(self._header, {**read_json(self._header), **state})

    def append(self, entry: Entry) -> None:
        line = json.dumps(dataclasses.asdict(entry)) + "\n"
        with self._entries.open("r+b") as file:
            end = file.seek(0, 2)
            if end and (file.seek(end - 1), file.read(1))[1] != b"\n":  # a line torn by a kill
                file.write(b"\n")
            file.write(line.encode())

    @property
    def exists(self) -> bool:
        return self._header.is_file()

    def header(self) -> Header:
        return Header(**read_json(self._header)["header"])

    def state(self) -> dict[str, Any]:
        """status, end_time, artifacts and uploaded."""
        return {name: value for name, value in read_json(self._header).items() if name != "header"}

    def entries(self, start: int = 0) -> tuple[list[Entry], int]:
        """The reports from a byte of the file on, and where the next ones will begin; a torn line is left out."""
        with self._entries.open("rb") as file:
            file.seek(start)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]  # the last line may be on its way
        entries = []
        for line in whole.splitlines():
            try:
                entries.append(Entry(**json.loads(line)))
            except (ValueError, TypeError):
                continue
        return entries, start + len(whole)


def all_journals(root: Path) -> list[Journal]:
    """Every journal below `root`, oldest run first."""
    journals = [Journal(root, path.parent.name) for path in root.glob("*/run.json")]
    return sorted(journals, key=lambda journal: journal.header().start_time)
