"""Large arrays on disk: .npy files that are written row by row and read memory-mapped, beside a manifest that describes them."""

import tokenize
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from vapi_core.errors import FileError
from vapi_core.files import read_json


def read_manifest(path: Path, kind: str, remedy: str) -> dict[str, Any]:
    """Reads a manifest of this kind. Raises FileError where it is missing, damaged or of another kind."""
    manifest = read_json(path, remedy)
    if not isinstance(manifest, dict) or manifest.get("kind") != kind:
        raise FileError(path, f'this is not a manifest of kind "{kind}".', remedy)
    return manifest


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


def open_array(path: Path, shape: tuple[int, ...], dtype: type[np.number], remedy: str) -> np.ndarray:
    """Memory-maps a .npy file, read-only.

    Raises:
        FileError: the file is missing, damaged or cut off, or holds something else than the manifest says.
    """
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:
        raise FileError(path, "the file is missing.", remedy) from None
    except (OSError, EOFError, ValueError, tokenize.TokenError) as error:  # the header is Python source
        raise FileError(path, f"the file is damaged ({error}).", remedy) from None
    if array.shape != shape or array.dtype != dtype:
        expected = f"{np.dtype(dtype)} {list(shape)}"
        raise FileError(path, f"holds {array.dtype} {list(array.shape)}, the manifest says {expected}.", remedy)
    return array
