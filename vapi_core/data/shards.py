"""Webdataset tar shards, indexed by their headers and read where they lie; the `datasets` library would copy all of them
first, and of ImageNet's 1.3 million images a subset needs one in a hundred."""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vapi_core.errors import FileError

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


def place_of(shard: Path, member: tarfile.TarInfo) -> Place:
    return Place(shard, member.offset_data, member.size)


def find_shards(root: Path) -> list[Path]:
    """The .tar files of a folder, sorted. Raises FileError if there are none."""
    shards = sorted(root.glob("*.tar"))
    if not shards:
        raise FileError(root, "there are no .tar files in this folder.", "Give the folder that holds the shards.")
    return shards


def read_samples(shard: Path) -> Iterator[tuple[str, Files]]:
    """Key and files of each sample of a shard, in the shard's order: files that share a name up to the first dot.

    Raises:
        FileError: the shard is damaged or cut off, or a file comes twice.
    """
    samples: dict[str, Files] = {}
    try:
        with open(shard, "rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                folder, _, name = member.name.rpartition("/")
                key, dot, suffix = name.partition(".")
                if not (member.isfile() and key and dot):
                    continue
                files = samples.setdefault(f"{folder}/{key}" if folder else key, {})
                if files.setdefault("." + suffix.lower(), member) is not member:
                    raise FileError(shard, f"the file {member.name} comes twice.", "Remove one of them.")
            file.seek(archive.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile takes a broken header for the end
                raise tarfile.ReadError("the end of the archive is missing")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise FileError(shard, f"the shard is damaged or cut off ({error}).", "Fetch it again.") from None
    yield from samples.items()
