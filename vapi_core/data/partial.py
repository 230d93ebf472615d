"""A .npy array whose rows come in any order and from any number of processes, and whose finished rows outlive a kill.

The array lies in a directory of its own: `rows.npy`, at full size from the start, and one file `START-STOP` in `done/`
for each range of rows that is on disk, which holds their sha256. What is left to do follows from these files alone,
whatever the batch size or the number of processes was before; rows that are not those of their hash are to be done
again.
"""

import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from vapi_core.arrays import open_array
from vapi_core.distributed import create_array, write_rows
from vapi_core.errors import FileError
from vapi_core.files import atomic_path

ROWS = "rows.npy"


def missing_ranges(count: int, done: Iterable[range], size: int) -> list[range]:
    """The rows of 0..count that no range of `done` holds, in order, cut into ranges of at most `size`."""
    missing: list[range] = []
    start = 0
    for part in [*sorted(done, key=lambda part: (part.start, part.stop)), range(count, count)]:
        missing += [range(i, min(i + size, part.start)) for i in range(start, part.start, size)]
        start = max(start, part.stop)
    return missing


class PartialArray:
    """The array of one directory, made anew or gone on with. Its content is the caller's: the name of the directory
    should tell all that determines the rows. Of several processes one makes it before the others open it."""

    def __init__(self, directory: Path | str, shape: tuple[int, ...], dtype: type[np.number]):
        """Raises FileError where the directory holds another array, or a damaged one."""
        self.directory, self.shape, self.dtype = Path(directory), shape, dtype
        if not self._path.exists():
            shutil.rmtree(self.directory, ignore_errors=True)
            self._create()
        self._open()

    @property
    def _path(self) -> Path:
        return self.directory / ROWS

    def _create(self) -> None:
        (self.directory / "done").mkdir(parents=True)
        with atomic_path(self._path) as temporary:
            create_array(temporary, self.shape, self.dtype)

    def _open(self) -> np.ndarray:
        remedy = f"Remove {self.directory}: it holds an unfinished array."
        return open_array(self._path, self.shape, self.dtype, remedy, None)

    def _done(self) -> dict[range, Path]:
        """The ranges that were written, damaged or not, and the file that tells of each."""
        files = {path: path.name.split("-") for path in (self.directory / "done").iterdir()}
        return {range(int(start), int(stop)): path for path, (start, stop) in files.items()}

    def missing(self, size: int) -> list[range]:
        """What is left to do, in ranges of at most `size` rows. Reads and hashes what is done."""
        rows = self._open()
        whole = [
            part for part, file in self._done().items() if file.read_bytes() == _hash(rows[part.start : part.stop])
        ]
        return missing_ranges(self.shape[0], whole, size)

    def write(self, rows: range, values: np.ndarray) -> None:
        """Writes these rows, [len(rows), *shape[1:]]; when it returns they are on disk."""
        write_rows(self._path, rows.start, values)
        with open(self._path, "rb") as file:
            os.fsync(file.fileno())
        (self.directory / "done" / f"{rows.start}-{rows.stop}").write_bytes(_hash(values))

    def finish(self, path: Path | str) -> None:
        """Moves the whole array to `path`, an .npy file, and removes the directory.

        Raises:
            FileError: rows are not what was written; the next run makes them anew, and them alone.
        """
        count = self.shape[0]
        assert not missing_ranges(count, self._done(), count), "rows are missing"
        if damaged := self.missing(count):
            problem = f"{sum(map(len, damaged))} rows are damaged, from row {damaged[0].start} on."
            raise FileError(self._path, problem, "Run the same again: these are made anew. Is the disk sound?")
        with atomic_path(path) as temporary:
            shutil.move(self._path, temporary)
        shutil.rmtree(self.directory)


def _hash(values: np.ndarray) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(values).data).hexdigest().encode()
