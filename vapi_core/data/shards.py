"""Webdataset tar shards, indexed by their headers and read where they lie; the `datasets` library would copy all of
them first, and of ImageNet's 1.3 million images a subset needs one in a hundred."""

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vapi_core.errors import FileError
from vapi_core.files import readable, require_regular, require_utf8_name

PACKED = re.compile(r"\.(tgz|tar\.(gz|bz2|xz|zst|lz4))$", re.IGNORECASE)
CHUNK = 2**20  # bytes that are looked through at once for the next archive
LONGEST_TEXT = 2**24  # bytes of a caption or a description; the tars of LAION hold some thousand
Files = dict[str, tarfile.TarInfo]  # suffix -> file of a sample


@dataclass(frozen=True)
class Place:
    """Where the bytes of one file lie inside a shard."""

    shard: Path
    start: int
    size: int

    def read(self) -> bytes:
        with open(self.shard, "rb") as file:
            file.seek(self.start)
            return file.read(self.size)

    def read_text(self, name: Path) -> bytes:
        """`read` for what is no image. Raises FileError, of the file `name`, if it is far too long for a text."""
        if self.size > LONGEST_TEXT:
            raise FileError(name, f"the file has {self.size:,} bytes, which is no caption, class or description.")
        return self.read()


def place_of(shard: Path, member: tarfile.TarInfo) -> Place:
    return Place(shard, member.offset_data, member.size)


def find_shards(root: Path) -> list[Path]:
    """The .tar files of a folder, sorted. Raises FileError if there are none, or compressed ones."""
    shards = sorted(root.glob("*.tar"))
    if not shards:
        raise FileError(root, "there are no .tar files in this folder.", "Give the folder that holds the shards.")
    for shard in shards:
        require_utf8_name(shard.name, root)
    if packed := sorted(path.name for path in root.iterdir() if PACKED.search(path.name)):
        problem = f"{len(packed)} shards are compressed, {readable(packed[0])} first; samples are read where they lie."
        raise FileError(root, problem, "Unpack them, or move them away.")
    return shards


def read_samples(shard: Path) -> Iterator[tuple[str, Files]]:
    """Key and files of each sample of a shard, in the shard's order: files that share a name up to the first dot.

    A shard may be several archives one after the other, as `cat` joins them.

    Raises:
        FileError: the shard is damaged or cut off, a file comes twice, or a name is not UTF-8.
    """
    samples: dict[str, Files] = {}
    try:
        require_regular(shard)
        for member in _members(shard):
            folder, _, name = member.name.rpartition("/")
            key, dot, suffix = name.partition(".")
            if not (member.isfile() and key and dot):
                continue
            require_utf8_name(member.name, shard)
            files = samples.setdefault(f"{folder}/{key}" if folder else key, {})
            if files.setdefault("." + suffix.lower(), member) is not member:
                raise FileError(shard, f"the file {readable(member.name)} comes twice.", "Remove one of them.")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise FileError(shard, f"the shard is damaged or cut off ({error}).", "Fetch it again.") from None
    yield from samples.items()


def _members(shard: Path) -> Iterator[tarfile.TarInfo]:
    """The members of every archive in a file; `tarfile` reads to the end of the first one."""
    with open(shard, "rb") as file:
        start: int | None = 0
        while start is not None:
            file.seek(start)
            with tarfile.open(fileobj=file, mode="r:") as archive:
                yield from archive
                end = archive.offset
            file.seek(end)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile takes a broken header for the end
                raise tarfile.ReadError("the end of the archive is missing")
            start = _next_block(file)


def _next_block(file: BinaryIO) -> int | None:
    """Where the next block that is not all zeros begins, from here on; None if there is none."""
    while chunk := file.read(CHUNK):
        if rest := chunk.lstrip(b"\0"):
            begin = file.tell() - len(rest)
            return begin - begin % tarfile.BLOCKSIZE
    return None
