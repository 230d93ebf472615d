"""Files that appear whole or not at all, and the hashes that tie one file to another."""

import glob
import hashlib
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from vapi_core.errors import FileError, file_problem, quoted

TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp", re.DOTALL)  # of a path, and the number of the process that writes it

CHECKSUM = "checksum"
ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
SETTLED = 2.0  # seconds after its last change in which a file could change again without another time of change


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yields a temporary path beside `path` and renames it to `path` when the block ends without an error.

    The block may create a file or a directory there. On an error the temporary is removed and `path` is as it was. What
    a killed process left of the same path is removed first.

    Raises:
        FileError: the file cannot be written: permissions, a full disk, something that is in its place.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise FileError(path, "this is a device or a pipe, which a file would replace.", "Name another place.")
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):  # a folder that may be written and not listed
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


def json_text(value: Any) -> str:
    """`value` as indented JSON; key order is kept, so equal values give equal text."""
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def write_json(path: Path | str, value: Any) -> None:
    """Writes `value` as `json_text`, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json_text(value), encoding="utf-8")


def read_json(path: Path | str, remedy: str = "") -> Any:
    """Reads JSON. `remedy` is the command that makes the file anew, for the error message.

    Raises:
        FileError: the file is missing, cannot be read, or is not JSON.
    """
    try:
        return parse_json(read_text(path, remedy))
    except ValueError as error:
        raise FileError(path, f"the file is damaged ({error}).", remedy) from None


def read_texts(path: Path | str, names: Iterable[str], remedy: str = "") -> dict[str, str]:
    """A JSON file in which these entries are texts. Raises FileError where it is missing or damaged, or an entry is."""
    value = read_json(path, remedy)
    wrong = [name for name in names if not isinstance(value, dict) or not isinstance(value.get(name), str)]
    if wrong:
        raise FileError(path, f"the file is damaged: the entry '{wrong[0]}' is missing or is no text.", remedy)
    return value


def parse_json(content: str | bytes) -> Any:
    """JSON whose texts can be written as UTF-8. Raises ValueError: no JSON, nested too deeply, half a character."""
    text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
    try:
        value = json.loads(text)
        if ESCAPED_SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise ValueError(f"it holds half of a character, {half!r}, which no file in UTF-8 can hold") from None
    return value


def write_checked_json(path: Path | str, value: dict[str, Any]) -> None:
    """`write_json` of `value` and the checksum of its content, by which `read_checked_json` sees damage."""
    write_json(path, _with_checksum(value))


def read_checked_json(path: Path | str, remedy: str = "") -> dict[str, Any]:
    """Reads what `write_checked_json` wrote, without the checksum.

    Raises:
        FileError: the file is missing, cannot be read, or is not as it was written, to the last byte.
    """
    text = read_text(path, remedy)
    try:
        value = parse_json(text)
    except ValueError as error:
        raise FileError(path, f"the file is damaged ({error}).", remedy) from None
    content = {name: entry for name, entry in value.items() if name != CHECKSUM} if isinstance(value, dict) else {}
    if text != json_text(_with_checksum(content)):
        problem = "the file is damaged, or was written by an older version: its checksum is not that of its content."
        raise FileError(path, problem, remedy)
    return content


def _with_checksum(value: dict[str, Any]) -> dict[str, Any]:
    return value | {CHECKSUM: hashlib.sha256(json_text(value).encode()).hexdigest()}


def read_text(path: Path | str, remedy: str = "") -> str:
    """A text file in UTF-8, without a byte order mark; line ends are as they stand there.

    Raises:
        FileError: the file is missing, is a folder, a pipe or a device, cannot be read, or a line is not UTF-8.
    """
    return decode_text(read_bytes(path, remedy), path, remedy)


def decode_text(content: bytes, path: Path | str, remedy: str = "") -> str:
    """`read_text` of a file's bytes."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + error.object.count(b"\n", 0, error.start)
        problem = f"the file is damaged (line {line} is not UTF-8: {error.reason})."
        raise FileError(path, problem, remedy or "Save it as UTF-8.") from None


def read_bytes(path: Path | str, remedy: str = "") -> bytes:
    """The content of a file.

    Raises:
        FileError: the file is missing, is a folder, a pipe or a device, or cannot be read.
    """
    try:
        require_regular(path, remedy)
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise FileError(path, "the file is missing.", remedy) from None
    except OSError as error:
        raise FileError(path, f"the file cannot be read ({error.strerror}).", remedy) from None


def require_regular(path: Path | str, remedy: str = "") -> None:
    """Raises FileError for what is no file but a folder, a pipe or a device; reading a pipe would wait for ever.

    Raises:
        OSError: nothing is there, or it may not be looked at.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise FileError(path, "this is no file, but a folder, a pipe or a device.", remedy)


def split_lines(text: str) -> list[str]:
    """The lines of a text, without their ends: a line ends with \\n or \\r\\n. `str.splitlines` cuts at U+2028, U+2029
    and U+0085 too, which may stand inside of a caption or a JSON text."""
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines[:-1] if not lines[-1] else lines


def require_utf8_name(name: str, where: Path | str) -> None:
    """Raises FileError for a name, of a file or a class, that no JSON file can hold: it is not UTF-8 on the disk."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise FileError(where, f"the name {readable(name)} in it is not UTF-8.", "Rename it.") from None


def readable(name: str) -> str:
    """A name with each byte that is not UTF-8 as \\xe9."""
    shown = (rf"\x{ord(c) - 0xDC00:02x}" if "\udc80" <= c <= "\udcff" else c for c in name)  # os.fsdecode's escapes
    return "".join(shown).encode("utf-8", "backslashreplace").decode()


class _Loader(yaml.SafeLoader):
    """YAML whose 1e-5 is a number, as DVC reads and writes it; YAML 1.1 takes it for text. No key may stand twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(None, None, f"the key {quoted(key.value)} stands twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


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
    except RecursionError:
        raise FileError(path, "not valid YAML: it is nested too deeply.") from None
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


def require_sha256(path: Path, sha256: str, remedy: str = "") -> None:
    """Raises FileError where a file's bytes are not those of this hash.

    A process hashes a file once, unless it changes.
    """
    try:
        state = os.stat(path)
        if time.time() - max(state.st_mtime, state.st_ctime) < SETTLED:
            found = sha256_file(path)
        else:
            found = _known_sha256(path.absolute(), state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    except OSError as error:
        raise FileError(path, f"the file cannot be read ({error.strerror}).", remedy) from None
    if found != sha256:
        raise FileError(path, "the file is damaged: its sha256 is not that of the manifest.", remedy)


@lru_cache(maxsize=1024)
def _known_sha256(path: Path, *state: int) -> str:
    return sha256_file(path)
