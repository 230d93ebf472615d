"""Files that appear whole or not at all, and the hashes that tie one file to another."""

import glob
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from vapi_core.errors import FileError, file_problem

TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp", re.DOTALL)  # of a path, and the number of the process that writes it


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yields a temporary path beside `path` and renames it to `path` when the block ends without an error.

    The block may create a file or a directory there. On an error the temporary is removed and `path` is as it was. What a
    killed process left of the same path is removed first.

    Raises:
        FileError: the file cannot be written: permissions, a full disk, something that is in its place.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise FileError(path, "this is a device or a pipe, which a file would replace.", "Name another place.")
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent.glob(f".{glob.escape(path.name)}.*.tmp"))
        _remove(temporary)  # an earlier process had this number
        yield temporary
        if path.is_dir() and temporary.is_dir():
            shutil.rmtree(path)  # a directory cannot be renamed over one that holds files
        os.replace(temporary, path)
    except BaseException as error:
        if (problem := file_problem(error)) and (place := _place(error, path, temporary)):
            raise FileError(place, problem) from error
        raise
    finally:
        with suppress(OSError):  # as far as it can be; the error above tells why it cannot
            _remove(temporary)


def _place(error: BaseException, path: Path, temporary: Path) -> Path | None:
    """Where writing `path` failed: there, or at a folder above it; None where the error is about another file."""
    if (name := getattr(error, "filename", None)) is None:
        return path
    named = Path(str(name))
    if named == temporary or named.is_relative_to(temporary):
        return path
    return named if path.is_relative_to(named) else None


def remove_leftovers(paths: Iterable[Path]) -> None:
    """Removes those of the paths that are temporaries of `atomic_path` whose process is dead.

    A process of another machine counts as dead; one that has the number of a dead one protects what that one left. What
    cannot be removed stays.
    """
    for path in paths:
        if (found := TEMPORARY.fullmatch(path.name)) and not _alive(int(found[1])):
            with suppress(OSError):  # another process does the same, or it is another user's
                _remove(path)


def remove_leftovers_below(folder: Path) -> None:
    """`remove_leftovers` for all that is in a folder and in the folders in it."""
    remove_leftovers(Path(top, name) for top, folders, files in os.walk(folder) for name in (*folders, *files))


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # somebody else's; no number that a process can have
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_whole(path: Path) -> None:
    """Removes a directory, if it is there, in such a way that a kill leaves all of it or nothing under its name."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    if path.is_dir():
        _remove(temporary)
        os.replace(path, temporary)
        shutil.rmtree(temporary)


def link_tree(source: Path, target: Path) -> None:
    """Copies a directory; files are hard links where the file system has them, so that they take no space twice."""

    def link(file: str, copy: str) -> None:
        try:
            os.link(file, copy)
        except OSError:  # another file system, or one without links
            shutil.copyfile(file, copy)

    shutil.copytree(source, target, copy_function=link)


def write_json(path: Path | str, value: Any) -> None:
    """Writes `value` as indented JSON, atomically; key order is kept, so equal values give equal bytes."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path | str, remedy: str = "") -> Any:
    """Reads JSON. `remedy` is the command that makes the file anew, for the error message.

    Raises:
        FileError: the file is missing or not JSON.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileError(path, "the file is missing.", remedy) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FileError(path, f"the file is damaged ({error}).", remedy) from None


class _Loader(yaml.SafeLoader):
    """YAML whose 1e-5 is a number, as DVC reads and writes it; YAML 1.1 takes it for text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(path: Path | str) -> Any:
    """Reads YAML as DVC does.

    Raises:
        FileError: the file is missing or no YAML.
    """
    try:
        return yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        raise FileError(path, "the file is missing. Run from the top of the repository.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        check_merged(path)
        raise FileError(path, f"not valid YAML: {error}") from None


def check_merged(path: Path | str) -> None:
    """Raises FileError where git has left the marks of a conflict in a file."""
    for number, line in enumerate(Path(path).read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if line.startswith(("<<<<<<< ", ">>>>>>> ")):
            problem = f"line {number} is git's mark of a conflict."
            raise FileError(path, problem, "Decide which of the two sides holds, and remove the marks.")


def sha256_file(path: Path | str) -> str:
    """Hex sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
