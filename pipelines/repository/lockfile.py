"""Whether DVC can read its files and its run cache; if not, which is wrong and what mends it.

`vapi run` says so after DVC has failed; nothing where another thing is the cause.
"""

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import yaml

from pipelines.messages import one_message
from pipelines.repository.git import git
from vapi_core.errors import FileError
from vapi_core.files import check_merged

LOCK = "dvc.lock"
HEADER = "schema: '2.0'\nstages:\n"  # of it
RUN_CACHE = ".dvc/cache/runs"  # STAGE'S HASH[:2]/STAGE'S HASH/OUTPUTS' HASH
FILES = ("params.yaml", "dvc.yaml", LOCK)
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the lock file may be long


def check_dvc_files(root: Path = Path()) -> None:
    """Raises FileError where a file has git's conflict marks, or dvc.lock is cut: DVC was killed as it wrote."""
    for path in (root / name for name in FILES):
        if path.is_file():
            check_merged(path)
    lock = root / LOCK
    if lock.is_file() and not _is_whole(lock.read_bytes()):
        raise FileError(lock, "the file is cut off or damaged; DVC was killed while it wrote it, say.", _remedy(root))


def check_run_cache(root: Path = Path()) -> None:
    """Raises FileError where DVC's run cache knows a stage and no run of it: DVC was killed between making the one and
    the other. DVC (3.67) then fails at this stage each time. While a DVC runs, this may be so for a moment."""
    empty = [folder.relative_to(root) for folder in sorted((root / RUN_CACHE).glob("*/*")) if not any(folder.iterdir())]
    if empty:
        problem = "the folder is empty, on which DVC fails; DVC was killed before it wrote there, say."
        remedy = f"Run `rmdir {' '.join(map(str, empty))}`, then the same command again."
        raise FileError(empty[0], problem, remedy)


def locked_stages(root: Path = Path()) -> list[str]:
    """The stages that dvc.lock has a finished run of."""
    lock = root / LOCK
    return list((yaml.load(lock.read_bytes(), Loader) or {}).get("stages", {})) if lock.is_file() else []


@contextmanager
def short_lock(stages: Iterable[str], root: Path = Path()) -> Iterator[None]:
    """dvc.lock has only these stages meanwhile; then what it has come to have, and all others as they were.

    DVC reads and writes the whole file with every stage, some seconds where it has a hundred.
    """
    lock, kept = root / LOCK, set(stages)
    before = _blocks(lock)
    _write(lock, {name: block for name, block in before.items() if name in kept})
    yield
    _write(lock, before | _blocks(lock))


def _blocks(lock: Path) -> dict[str, str]:
    """Stage -> its lines in a lock file as DVC writes it: no format is lost, as it would be by parsing."""
    blocks = re.split(r"(?m)^(?=  \S)", lock.read_text(encoding="utf-8")) if lock.is_file() else []
    return {block.partition(":\n")[0].strip(): block for block in blocks[1:]}


def _write(lock: Path, blocks: dict[str, str]) -> None:
    """Writes a lock file of these stages; DVC refuses one of none."""
    if blocks:
        lock.write_text(HEADER + "".join(blocks.values()), encoding="utf-8")
    else:
        lock.unlink(missing_ok=True)


def output_hashes(content: str) -> dict[str, str]:
    """Path -> DVC's hash of every output that a dvc.lock has of a finished stage, in the order of the paths."""
    stages = (yaml.load(content, Loader) or {}).get("stages", {})
    outputs = [out for stage in stages.values() for out in stage.get("outs", [])]
    return {out["path"]: out[out.get("hash", "md5")] for out in sorted(outputs, key=lambda out: out["path"])}


def _is_whole(content: bytes) -> bool:
    """Whether DVC accepts the content of a lock file."""
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA  # takes most of a second
    from voluptuous import Invalid

    try:
        COMPILED_LOCKFILE_SCHEMA(yaml.load(content, Loader))
    except (yaml.YAMLError, Invalid):
        return False
    return True


def _remedy(root: Path) -> str:
    known = ""
    with suppress(FileError):
        known = git(root, "ls-files", LOCK).strip()
    command = f"git checkout {LOCK}" if known else f"rm {LOCK}"
    return f"Run `{command}`, then the same command again: DVC has every stage that was finished in its run cache."


@one_message
def main() -> None:
    check_dvc_files()
    check_run_cache()


if __name__ == "__main__":
    sys.exit(main())
