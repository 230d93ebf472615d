"""Large arrays on disk: .npy files that are written row by row and read memory-mapped, beside a manifest that describes
them.

A manifest holds the sha256 of each file beside it and a checksum of itself, and every reader compares them, so that a
byte that flipped on a disk is told with the name of its file.
"""

import tokenize
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from vapi_core.errors import FileError, quoted
from vapi_core.files import read_checked_json, require_regular, require_sha256, sha256_file, write_checked_json

MANIFEST = "manifest.json"


def write_manifest(directory: Path, manifest: dict[str, Any], files: Iterable[str]) -> None:
    """Writes `manifest.json` with the sha256 of these files of the same directory, and a checksum of itself."""
    sha256 = {name: sha256_file(directory / name) for name in files}
    write_checked_json(directory / MANIFEST, manifest | {"sha256": sha256})


def read_manifest(path: Path, kind: str, remedy: str) -> dict[str, Any]:
    """Reads a manifest of this kind. Raises FileError where it is missing, damaged or of another kind."""
    manifest = read_checked_json(path, remedy)
    if manifest.get("kind") != kind:
        raise FileError(path, f'this is not a manifest of kind "{kind}".', remedy)
    return manifest


@contextmanager
def entries_of(path: Path, remedy: str) -> Iterator[None]:
    """Turns what goes wrong with a manifest's entries, one that is missing or of another type, into a FileError."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileError(path, f"the manifest is damaged ({quoted(error)}).", remedy) from None


@contextmanager
def array_writer(path: Path, shape: tuple[int, ...], dtype: type[np.number]) -> Iterator[Callable[[np.ndarray], None]]:
    """Yields a function that appends rows [n, *shape[1:]] to a new .npy file; shape[0] rows must come in all.

    The bytes are those of `np.save`. The file is written in order and not through a memory map: pages of a map count
    as memory of the process until the kernel takes them back, and a full disk would kill the process with SIGBUS.
    """
    written = 0
    with open(path, "wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)

        def append(rows: np.ndarray) -> None:
            nonlocal written
            assert (rows.dtype, rows.shape[1:]) == (dtype, shape[1:]), f"{rows.dtype} {rows.shape} into {dtype} {shape}"
            file.write(np.ascontiguousarray(rows).data)
            written += len(rows)

        yield append
    assert written == shape[0], f"{written} rows came for an array of {shape}"


def open_array(
    path: Path, shape: tuple[int, ...], dtype: type[np.number], remedy: str, sha256: str | None
) -> np.ndarray:
    """Memory-maps a .npy file, read-only, after hashing it; once in a process, unless the file changes.

    Args:
        sha256: what the manifest says; None where rows are checked in another way (`vapi_core.data.partial`).

    Raises:
        FileError: the file is missing, damaged or cut off, or holds something else than the manifest says.
    """
    try:
        require_regular(path, remedy)
        array = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:
        raise FileError(path, "the file is missing.", remedy) from None
    except (OSError, EOFError, ValueError, tokenize.TokenError) as error:  # the header is Python source
        raise FileError(path, f"the file is damaged ({error}).", remedy) from None
    if array.shape != shape or array.dtype != dtype:
        expected = f"{np.dtype(dtype)} {list(shape)}"
        raise FileError(path, f"holds {array.dtype} {list(array.shape)}, the manifest says {expected}.", remedy)
    if sha256 is not None:
        require_sha256(path, sha256, remedy)
    return array
