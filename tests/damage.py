"""What a disk or a copy does to files: bytes that flip."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from vapi_core.errors import FileError


@contextmanager
def flipped(path: Path, offset: int) -> Iterator[None]:
    """One bit of one byte is another within the block."""
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[offset] ^= 1 << (offset % 8)
    path.write_bytes(damaged)
    yield
    path.write_bytes(whole)


def check_every_flip_is_named(path: Path, read: Callable[[], object], flips: int = 40) -> None:
    """Flips bytes all over a file, one at a time: each time `read` refuses, and it is this file that it names."""
    offsets = np.linspace(0, path.stat().st_size - 1, flips).astype(int)
    for offset in sorted(set(offsets.tolist())):
        with flipped(path, offset), pytest.raises(FileError) as error:
            read()
        assert error.value.path == path, f"byte {offset}: {error.value}"
    read()
