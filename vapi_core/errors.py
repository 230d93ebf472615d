"""Errors that are meant for the user: each names a parameter or a file and says what to do about it."""

import errno
import os
import re
from pathlib import Path


class VapiError(Exception):
    """Base of every error whose message is all a user needs; a stage prints it and exits with code 1."""


class ParameterError(VapiError):
    """A parameter has a value that cannot work. `name` is its dotted key in params.yaml, e.g. "align.noise_ratio"."""

    def __init__(self, name: str, problem: str):
        super().__init__(f"{name}: {problem}")
        self.name = name


class FileError(VapiError):
    """A file is missing, damaged, or made from something else than what it is used with."""

    def __init__(self, path: Path | str, problem: str, remedy: str = ""):
        super().__init__(f"{path}: {problem}" + (f" {remedy}" if remedy else ""))
        self.path = Path(path)


class TrainingError(VapiError):
    """A training has left the range of numbers. `step` counts from 1, as curves do; `metric` is what is not finite."""

    def __init__(self, step: int, metric: str, value: float):
        remedy = "Lower the learning rate, lengthen the warm-up, or train in float32."
        super().__init__(f"training stopped at step {step}: {metric} is {value}. {remedy}")
        self.step, self.metric, self.value = step, metric, value


LONGEST_QUOTE = 200  # characters of a value that a message repeats


def shortened(text: str) -> str:
    """A text of the user's as a message repeats it: cut where it is long."""
    return text if len(text) <= LONGEST_QUOTE else f"{text[: LONGEST_QUOTE - 3]}..."


def quoted(value: object) -> str:
    """A value of the user's as a message repeats it: as Python writes it, cut where it is long."""
    try:
        return shortened(repr(value))
    except ValueError:  # Python writes no integer of more than 4300 digits
        return f"a value of type {type(value).__name__} that is too long to be shown"


AGAIN = "then run the same command again; what was finished is kept."
FULL = f"the disk is full. Free some space, {AGAIN}"
FILE_PROBLEMS = {
    errno.EACCES: "permission denied. Change the permissions of the file or of its folder, or work as their owner.",
    errno.EPERM: "the system does not permit this. Change the permissions or attributes of the file or of its folder.",
    errno.EROFS: "the file system is read-only. Work in a copy that lies where files can be written.",
    errno.ENOSPC: FULL,
    errno.EDQUOT: f"your quota of the disk is used up. Free some space, {AGAIN}",
    errno.EFBIG: "the file would be larger than the file system or the shell (`ulimit -f`) allows.",
    errno.EIO: "the disk has an error: the system could not read or write it.",
    errno.ENOTDIR: "a part of this path is a file, not a folder.",
    errno.EISDIR: "this is a folder, not a file.",
    errno.ENAMETOOLONG: "the name is too long for the file system.",
    errno.ELOOP: "its links lead in a circle.",
    errno.EMFILE: "too many files are open. Allow more: `ulimit -n 4096`.",
    errno.ENFILE: "too many files are open on this machine.",
}
# what numpy, torch and safetensors say of a file that could not be written whole; none passes on the system's error
CUT_WRITES = (
    r"^\d+ requested and \d+ written|inline_container\.cc.*(unexpected pos|write failed)|No space left on device"
)


def file_problem(error: BaseException) -> str | None:
    """What keeps a file from being read or written and is the user's to mend, and how; None for any other error."""
    if isinstance(error, OSError) and error.errno is not None:
        if error.errno == errno.EEXIST and error.filename is not None and Path(os.fsdecode(error.filename)).is_file():
            return "a file is in the place of this folder. Move it away."
        return FILE_PROBLEMS.get(error.errno)
    return FULL if re.search(CUT_WRITES, str(error)) else None
