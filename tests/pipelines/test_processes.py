"""Whoever is killed, nothing goes on running."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from pipelines import processes
from pipelines.processes import Guarded, marked

ROOT = Path(__file__).parents[2]
TREE = "sleep 100; true"  # a command with a child of its own


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """Of a process that works in a place of its own, wherever it is."""
    monkeypatch.setattr(processes, "WORK", tmp_path)
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


def test_a_process_that_has_just_been_started_and_shows_no_environment_yet_is_not_overlooked(environment, monkeypatch):
    whole, looks = psutil.Process.environ, dict[int, int]()

    def at_first_empty(process):
        looks[process.pid] = looks.get(process.pid, 0) + 1
        return whole(process) if looks[process.pid] > 1 else {}

    monkeypatch.setattr(psutil.Process, "environ", at_first_empty)
    with subprocess.Popen(["sleep", "100"], env={**environment, processes.MARK: processes.mark("new")}) as started:
        assert [process.pid for process in marked("new")] == [started.pid]
        processes.end_marked("new")


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


def test_a_command_of_the_same_name_in_another_clone_is_left_alone(environment, tmp_path):
    with Guarded(["sh", "-c", TREE], "stage", environment):
        first = tree("stage")
        with Guarded(["echo", "second"], "stage", {**environment, "VAPI_WORK": str(tmp_path / "other")}) as second:
            assert list(second.lines()) == ["second"]
        assert [process.pid for process in marked("stage")] == [process.pid for process in first]


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


STAGE = """
import os, signal, sys, time
from pipelines import processes
from pipelines.messages import one_message
signal.signal(signal.SIGTERM, signal.SIG_DFL)
processes.GRACE_SECONDS = 0.1 if "deaf" in sys.argv else 60  # a busy machine takes its time to tidy up
@one_message
def stage():
    try:
        if "deaf" in sys.argv:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("ready", flush=True)
        time.sleep(60)
        print("outlived it", flush=True)
    finally:
        print("tidied up", flush=True)
processes.end_with_dvc()
sys.exit(stage())
"""


@pytest.mark.parametrize("command", ["python stage.py", "python stage.py; true", "python stage.py deaf"])
def test_a_stage_ends_when_dvc_is_killed_whether_or_not_a_shell_is_between_them(tmp_path, environment, command):
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    (tmp_path / "dvc.yaml").write_text(f"stages: {{stage: {{cmd: {command}}}}}\n")
    (tmp_path / "stage.py").write_text(STAGE)
    path = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    dvc = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro"],
        cwd=tmp_path,
        env={**environment, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert dvc.stdout is not None
    assert any(line == "ready\n" for line in dvc.stdout)
    dvc.kill()
    rest = dvc.stdout.read()  # which ends when the last process that can write there has ended
    assert rest == ("" if "deaf" in command else "tidied up\n")
    dvc.wait()


def test_a_stage_without_dvc_belongs_to_nobody(monkeypatch):
    monkeypatch.delenv("DVC_STAGE", raising=False)
    before = threading.active_count()
    processes.end_with_dvc()
    assert threading.active_count() == before


HOLDER = """
import sys
from pipelines.frame.stage import _alone
with _alone("align@va-pi-0", sys.argv[1]):
    print("works", flush=True)
    sys.stdin.read()
"""


def hold(key, folder, environment):
    """A process that runs the stage `align@va-pi-0` of this key in this folder."""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, key],
        cwd=folder,
        env=environment,
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        text=True,
    )


@pytest.mark.parametrize(("key", "folder"), [("other params", "here"), ("key", "there")])
def test_a_stage_waits_for_one_of_its_folder_or_of_its_key_and_says_for_whom(tmp_path, environment, key, folder):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    first = hold("key", tmp_path / "here", environment)
    assert first.stdout.readline() == "works\n"
    second = hold(key, tmp_path / folder, environment)
    assert second.stderr.readline() == f"align@va-pi-0 waits for process {first.pid}, which runs the same stage.\n"
    other = hold("a third key", tmp_path, environment)
    assert other.stdout.readline() == "works\n"  # another cell of a sweep has nothing to wait for
    first.kill()
    assert second.stdout.readline() == "works\n"
    for process in (first, second, other):
        process.communicate()
    assert (second.returncode, other.returncode) == (0, 0)
