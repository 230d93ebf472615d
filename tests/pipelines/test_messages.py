"""How all commands end."""

import errno
import json
import os
import signal
import subprocess
import sys

import pytest

from pipelines.messages import one_message
from vapi_core.errors import VapiError


@one_message
def failing(error):
    raise error


def test_an_error_goes_to_stderr_or_where_torchrun_looks_for_it(monkeypatch, capsys, tmp_path):
    assert failing(VapiError("the file is missing.")) == 1
    assert capsys.readouterr().err == "error: the file is missing.\n"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    assert failing(VapiError("the file is missing.")) == 1
    assert capsys.readouterr().err == ""
    assert json.loads((tmp_path / "error.json").read_text())["message"] == "error: the file is missing."


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(errno.EACCES, "denied", "data/subset"), "data/subset: permission denied."),
        (OSError(errno.EROFS, "read-only", "a", None, "b"), "b: the file system is read-only."),
        (OSError(errno.ENOSPC, "no space"), "the disk is full."),
        (
            RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
            "the disk is full.",
        ),
    ],
)
def test_what_the_machine_refuses_is_one_message_that_names_the_file(capsys, error, message):
    assert failing(error) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"error: {message}") and told.count("\n") == 1


@pytest.mark.parametrize("error", [KeyError("x"), FileNotFoundError(errno.ENOENT, "missing"), ValueError("no space")])
def test_a_programming_error_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        failing(error)


def test_a_name_that_is_no_text_can_be_told(tmp_path):
    program = f"from pipelines.messages import one_message; one_message(print)({os.fsdecode(bytes([255]))!r})"
    strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    result = subprocess.run([sys.executable, "-c", program], env=strict, capture_output=True, text=True, check=True)
    assert result.stdout == "\\udcff\n"


def test_a_reader_that_has_enough_ends_a_command_in_silence():
    program = "import sys; from pipelines.messages import one_message; sys.exit(one_message(lambda: print('line\\n' * 99999))())"
    command = f'{sys.executable} -c "{program}" | head -1; exit ${{PIPESTATUS[0]}}'
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (128 + signal.SIGPIPE, "line\n", "")


INTERRUPTED = """
import signal, sys
from pipelines.messages import heed_signals, one_message
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_DFL)  # whatever the test's caller has ignored
if {early}:
    heed_signals()
    print("ready", flush=True)
    signal.pause()
@one_message
def command():
    try:
        print("ready", flush=True)
        signal.pause()
    finally:
        print("tidied up", flush=True)
sys.exit(command())
"""


@pytest.mark.parametrize(("number", "code", "name"), [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")])
@pytest.mark.parametrize("early", [False, True])
def test_a_command_that_is_asked_to_end_tidies_up_what_it_has_begun_and_says_one_line(number, code, name, early):
    program = INTERRUPTED.format(early=early)
    command = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert command.stdout is not None and command.stdout.readline() == "ready\n"
    command.send_signal(number)
    output, errors = command.communicate()
    assert (command.returncode, errors) == (code, f"stopped by {name}\n")
    assert output == ("" if early else "tidied up\n")


def test_every_command_says_one_line_also_while_it_imports():
    """`python -m pipelines.X` imports for seconds before it begins."""
    program = (
        "import signal, sys; sys.argv[0] = '-m'; import pipelines; print(signal.getsignal(signal.SIGTERM).__module__)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "pipelines.messages\n"
