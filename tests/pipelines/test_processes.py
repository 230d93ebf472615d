"""Whoever is killed, nothing goes on running."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipelines import processes
from pipelines.processes import Guarded, marked

ROOT = Path(__file__).parents[2]
TREE = "sleep 100; true"  # a command with a child of its own


@pytest.fixture
def environment(tmp_path):
    """Of a process that works in a place of its own, wherever it is."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "VAPI_WORK": str(tmp_path)}


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def tree(name):
    """The processes of the command `TREE`, once both are there."""
    wait_until(lambda: len(marked(name)) == 2)
    return marked(name)


def test_output_and_exit_code_come_back(environment):
    lines = []
    assert processes.run(["sh", "-c", "echo out; echo error >&2; exit 3"], "told", environment, lines.append) == 3
    assert lines == ["out", "error"]


def test_the_end_of_the_block_ends_the_whole_tree(environment):
    with Guarded(["sh", "-c", TREE], "block", environment):
        processes_of_it = tree("block")
    assert not any(process.is_running() for process in processes_of_it)


def test_what_the_command_leaves_behind_ends_with_it(environment):
    program = "import subprocess, sys; subprocess.Popen(['sleep', '100']); sys.exit(1)"
    with Guarded([sys.executable, "-c", program], "left", environment) as process:
        assert process.wait() == 1
        assert marked("left") == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_caller_takes_the_command_along(environment, number):
    program = (
        f"from pipelines.processes import run; import os; run(['sh', '-c', {TREE!r}], 'caller', os.environ, print)"
    )
    caller = subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.DEVNULL)
    tree("caller")
    caller.send_signal(number)
    caller.wait()
    wait_until(lambda: marked("caller") == [])


def test_what_outlived_a_killed_guard_is_ended_before_the_next_attempt_starts(environment):
    with Guarded(["sh", "-c", TREE], "orphan", environment) as first:
        orphans = tree("orphan")
        psutil.Process(first._process.pid).kill()
        first.wait()
    assert all(process.is_running() for process in orphans)
    lines = []
    assert processes.run(["echo", "again"], "orphan", environment, lines.append) == 0
    assert lines == ["again"] and not any(process.is_running() for process in orphans)


def test_a_second_command_of_a_name_waits_for_the_first_and_leaves_it_alone_when_it_gives_up(environment):
    with Guarded(["sh", "-c", TREE], "twice", environment):
        first = tree("twice")
        with Guarded(["echo", "second"], "twice", environment) as second:
            wait_until(lambda: psutil.Process(second._process.pid).num_threads() == 2)  # it reads its input
        assert [process.pid for process in marked("twice")] == [process.pid for process in first]
    with Guarded(["echo", "second"], "twice", environment) as second:
        assert list(second.lines()) == ["second"]


def test_a_process_that_is_to_end_ends_its_commands_and_starts_no_other(environment):
    program = f"""
import os, threading
from pipelines import processes
def command(): print(processes.run(['sh', '-c', {TREE!r}], 'ending', os.environ, print), flush=True)
thread = threading.Thread(target=command)
thread.start()
while len(processes.marked('ending')) < 2: pass
processes.end_all()
thread.join()
command()
"""
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["143", "143"] and marked("ending") == []
