"""What an error says of the user's values and of the machine's troubles with files."""

import errno
import os

import pytest

from vapi_core.errors import file_problem, quoted, shortened


def test_a_value_is_repeated_as_python_writes_it_and_at_most_200_characters_of_it():
    assert quoted("va-pi") == "'va-pi'" and quoted([1, None]) == "[1, None]"
    for long in ("x" * 10_000, list(range(10_000))):
        assert len(quoted(long)) == 200 and repr(long).startswith(quoted(long).removesuffix("..."))
    assert shortened("x" * 200) == "x" * 200 and len(shortened("x" * 201)) == 200
    assert "int" in quoted(10**5000)  # which Python refuses to write


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EACCES, "permission denied"),
        (errno.EROFS, "read-only"),
        (errno.ENOSPC, "the disk is full. Free some space"),
        (errno.EISDIR, "this is a folder"),
        (errno.ENOTDIR, "is a file, not a folder"),
        (errno.EMFILE, "ulimit -n"),
    ],
)
def test_what_the_system_refuses_is_told_with_what_to_do(number, words):
    assert words in file_problem(OSError(number, os.strerror(number)))


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "missing"), OSError("odd"), KeyError("x")])
def test_any_other_error_keeps_its_traceback(error):
    assert file_problem(error) is None
