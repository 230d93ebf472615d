"""How stages on several processes start; the processes themselves run in test_dag and tests/test_distributed."""

import signal
import subprocess
import sys

import pytest

from pipelines.config.loading import check_params
from pipelines.config.profiles import read_profile
from pipelines.frame import stage
from vapi_core.errors import ParameterError


@pytest.fixture
def params():
    content = read_profile("mnist")
    content["launch"]["processes"] = 2
    return check_params(content)


@pytest.mark.parametrize(("started", "parallel"), [(4, True), (1, True), (2, False)])
def test_torchrun_must_start_as_many_processes_as_the_params_say(params, monkeypatch, started, parallel):
    monkeypatch.setenv("WORLD_SIZE", str(started))
    with pytest.raises(ParameterError, match=rf"launch\.processes: torchrun started {started}"):
        stage._check_launch(params, parallel)
    monkeypatch.setenv("WORLD_SIZE", "2" if parallel else "1")
    stage._check_launch(params, parallel)


LAUNCHER = """
import subprocess, sys
child = "import sys, time; sys.path.insert(0, '.'); from pipelines.frame.launch import live_with_launcher; "
child += "live_with_launcher(); print('ready', flush=True); time.sleep(20); print('outlived it')"
subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent was killed")
def test_a_process_ends_with_a_launcher_that_was_killed():
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert launcher.stdout is not None
    assert launcher.stdout.readline() == "ready\n"
    launcher.send_signal(signal.SIGKILL)
    assert launcher.stdout.read() == ""  # which ends when the last process that can write there has ended: the child
    launcher.wait()
