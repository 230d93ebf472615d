"""A stage that is run as a command never imports MLflow: a process beside it sends, whatever becomes of the stage."""

import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pipelines.tracking import mlflow_runs
from pipelines.tracking import runs as tracking

REPOSITORY = Path(__file__).parents[3]
DEAD_SERVER = "http://127.0.0.1:9"  # the discard port: nothing listens
STAGE = """
    import os, signal, sys
    from pipelines.tracking import mlflow_runs, uploader
    from pipelines.tracking import runs as tracking
    uploader.start_early()
    with tracking.stage_run(experiment="digits", name="align@va-pi-0", key="k1", params={}, tags={}, advice="lower the batch") as run:
        run.log({"loss": 1.0}, step=1)
"""


@pytest.fixture
def workplace(tmp_path, monkeypatch, empty_store):
    """A working directory with its own database, and nothing else."""
    shutil.copy(empty_store, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    return tmp_path


def start(program, **options):
    code = textwrap.dedent(program)
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, stdout=subprocess.PIPE, **options)


def live(key="k1"):
    client = mlflow_runs.connect()
    return mlflow_runs.live_runs(client, mlflow_runs.find_or_create_experiment(client, "digits"), key)


def test_a_stage_leaves_mlflow_to_the_process(workplace):
    program = STAGE + "    assert 'mlflow' not in sys.modules\n"
    stage = start(program)
    _, errors = stage.communicate()
    assert stage.returncode == 0, errors.decode()
    (finished,) = live()
    assert finished.info.status == "FINISHED" and finished.data.metrics == {"loss": 1.0}
    assert tracking.Journal(tracking.JOURNALS, "k1").state()["uploaded"]


def test_what_mlflow_prints_of_a_run_on_a_server_is_no_answer_to_the_stage(server, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    stage = start(STAGE)
    told, errors = stage.communicate()
    assert (stage.returncode, told.decode()) == (0, ""), errors.decode()
    assert [run.info.status for run in live()] == ["FINISHED"]
    monkeypatch.setenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "false")
    stage = start(STAGE)
    told, errors = stage.communicate()
    assert (stage.returncode, told.decode()) == (0, "") and "View run align@va-pi-0" in errors.decode()


def test_ctrl_c_reaches_the_stage_alone_and_its_run_is_closed(workplace):
    listen = "signal.signal(signal.SIGINT, signal.default_int_handler)"  # a shell's background jobs do not
    interrupted = f"        {listen}\n        os.killpg(0, signal.SIGINT)\n        while True:\n            pass\n"
    stage = start(STAGE + interrupted, start_new_session=True)
    stage.communicate()
    assert [run.info.status for run in live()] == ["KILLED"]


def test_the_run_of_a_killed_stage_is_closed_as_killed_and_the_process_tells_and_ends(workplace):
    program = """
        while not mlflow_runs.live_runs(mlflow_runs.connect(), "1", "k1"):
            pass
        os.kill(os.getpid(), signal.SIGKILL)
    """
    stage = start(textwrap.dedent(STAGE) + textwrap.indent(textwrap.dedent(program), "    "))
    _, errors = stage.communicate()  # until all have ended that write to its stderr, the process that sends among them
    assert stage.returncode == -signal.SIGKILL
    told = "error: stage align@va-pi-0 ended without a word: it was killed. If that was for want of memory"
    assert f"{told} (the kernel's log says so): lower the batch" in errors.decode()
    (killed,) = live()
    assert killed.info.status == "KILLED" and killed.data.metrics == {"loss": 1.0}
    assert tracking.Journal(tracking.JOURNALS, "k1").state()["status"] == "KILLED"


def test_the_next_attempt_waits_until_the_run_of_a_killed_one_is_closed_and_replaces_it(workplace):
    journal = tracking.Journal(tracking.JOURNALS, "k1")
    journal.begin(tracking.Header("digits", "align@va-pi-0", "k1", tracking.now()))
    with journal.sending():  # the process of the killed one is at it
        next_one = start(STAGE)
        while not journal.entries()[0]:
            pass
        assert live() == []
    next_one.communicate()
    assert [run.info.status for run in live()] == ["FINISHED"]


def test_a_killed_stages_process_leaves_the_journal_of_the_next_attempt_alone(workplace):
    journal = tracking.Journal(tracking.JOURNALS, "k1")
    header = tracking.Header("digits", "align@va-pi-0", "k1", tracking.now())
    journal.begin(header)
    next_one = tracking.Journal(tracking.JOURNALS, "k1")
    waits = iter([False, True])

    def over(seconds):
        if seconds:
            next_one.live()
            next_one.begin(header)
        return next(waits)

    assert tracking.follow(journal.directory, over) == "the stage was killed"
    assert journal.state()["status"] == "RUNNING"
    assert [run.info.status for run in live()] == ["KILLED"]  # until the next attempt replaces it
    next_one.rest()


def test_scores_of_other_runs_are_sent_beside_the_stages_own(workplace):
    with tracking.stage_run(experiment="digits", name="generator", key="k2", params={}, tags={}) as run:
        run.log({"loss": 2.0}, step=1)
    start(STAGE + "        tracking.add_scores({'k2': {'score/fid': 7.65}}, {})\n").communicate()
    assert [run.data.metrics for run in live("k2")] == [{"loss": 2.0, "score/fid": 7.65}]
    assert [run.info.status for run in live()] == ["FINISHED"]


def test_a_stage_killed_before_its_run_was_made_gets_none(workplace):
    journal = tracking.Journal(tracking.JOURNALS, "k1")
    journal.begin(tracking.Header("digits", "align@va-pi-0", "k1", tracking.now()))
    assert tracking.follow(journal.directory, lambda seconds: True) == "the stage was killed"
    assert live() == []
    journal.update(status="FINISHED", end_time=tracking.now())  # one that ends as fast gets its run
    assert tracking.follow(journal.directory, lambda seconds: True) is None
    assert [run.info.status for run in live()] == ["FINISHED"]


def test_a_command_that_turns_out_to_track_nothing_ends_its_process(workplace):
    program = """
        import psutil
        from pipelines.tracking import uploader
        uploader.start_early()
        (process,) = psutil.Process().children()
        uploader.dismiss_early()
        assert not process.is_running()
    """
    assert start(program).wait() == 0


TWO_RUNS = """
    import os, signal, sys
    import psutil
    from pipelines.tracking import mlflow_runs, uploader
    from pipelines.tracking import runs as tracking
    uploader.start_early()
    (process,) = psutil.Process().children()

    def run_of(key):
        return tracking.stage_run(experiment="digits", name=key, key=key, params={}, tags={}, advice=f"lower {key}")

    with run_of("k1") as run:
        run.log({"loss": 1.0}, step=1)
    assert [run.info.status for run in mlflow_runs.live_runs(mlflow_runs.connect(), "1", "k1")] == ["FINISHED"]
"""


def test_two_runs_one_after_the_other_are_sent_by_the_same_process(workplace):
    program = """
        assert psutil.Process().children() == [process]
        with run_of("k2") as run:
            run.log({"loss": 2.0}, step=1)
            assert psutil.Process().children() == [process]
    """
    stage = start(textwrap.dedent(TWO_RUNS) + textwrap.dedent(program))
    _, errors = stage.communicate()
    assert stage.returncode == 0 and errors.decode() == ""
    for key, loss in (("k1", 1.0), ("k2", 2.0)):
        (finished,) = live(key)
        assert finished.info.status == "FINISHED" and finished.data.metrics == {"loss": loss}
        assert tracking.Journal(tracking.JOURNALS, key).state()["uploaded"]


def test_a_stage_that_is_killed_in_its_second_run_is_told_once_and_its_first_stays_finished(workplace):
    program = """
        with run_of("k2") as run:
            run.log({"loss": 2.0}, step=1)
            while not mlflow_runs.live_runs(mlflow_runs.connect(), "1", "k2"):
                pass
            os.kill(os.getpid(), signal.SIGKILL)
    """
    _, errors = start(textwrap.dedent(TWO_RUNS) + textwrap.dedent(program)).communicate()
    told = errors.decode()
    assert told.count("ended without a word") == 1 and "stage k2 ended" in told and "lower k2" in told
    assert [run.info.status for key in ("k1", "k2") for run in live(key)] == ["FINISHED", "KILLED"]


def test_a_run_that_cannot_be_sent_is_told_and_the_next_one_is_sent(workplace):
    program = """
        with tracking.stage_run(experiment="", name="k2", key="k2", params={}, tags={}) as run:  # which MLflow refuses
            run.log({"loss": 2.0}, step=1)
        with run_of("k3") as run:
            run.log({"loss": 3.0}, step=1)
        assert psutil.Process().children() == [process]
    """
    stage = start(textwrap.dedent(TWO_RUNS) + textwrap.dedent(program))
    _, errors = stage.communicate()
    assert stage.returncode == 0 and errors.decode().count("warning: ") == 1
    assert "MLflow refuses what the run reports" in errors.decode()
    assert not tracking.Journal(tracking.JOURNALS, "k2").state()["uploaded"]
    (finished,) = live("k3")
    assert finished.info.status == "FINISHED" and finished.data.metrics == {"loss": 3.0}


def test_scores_that_cannot_be_sent_are_told_and_the_stages_own_run_is_not_to_blame(workplace):
    broken = tracking.JOURNALS / "k2"
    broken.mkdir(parents=True)
    (broken / "run.json").write_text('{"header": {}, "uploaded": false}')
    (broken / "metrics.jsonl").write_text("")
    stage = start(STAGE + "        tracking.add_scores({'k2': {'score/fid': 7.65}}, {})\n")
    _, errors = stage.communicate()
    assert "To send the scores later: vapi upload" in errors.decode()
    assert [run.info.status for run in live()] == ["FINISHED"]
    assert tracking.Journal(tracking.JOURNALS, "k1").state()["uploaded"]


def test_without_a_server_the_stage_is_told_and_succeeds(workplace, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", DEAD_SERVER)
    stage = start(STAGE)
    _, errors = stage.communicate()
    assert stage.returncode == 0 and "vapi upload" in errors.decode()
    assert not tracking.Journal(tracking.JOURNALS, "k1").state()["uploaded"]


def test_a_process_that_dies_is_told_as_a_server_that_is_away(workplace):
    program = """
        import psutil
        with tracking.stage_run(experiment="digits", name="b", key="k2", params={}, tags={}) as run:
            (process,) = psutil.Process().children()
            process.kill()
            run.log({"loss": 2.0}, step=1)
    """
    stage = start(textwrap.dedent(STAGE) + textwrap.dedent(program))
    _, errors = stage.communicate()
    assert stage.returncode == 0 and "warning: the process that sends ended with code -9" in errors.decode()
    assert not tracking.Journal(tracking.JOURNALS, "k2").state()["uploaded"]


def test_a_command_that_tracks_nothing_makes_no_database(workplace):
    (workplace / "mlflow.db").unlink()
    command = start("from pipelines.tracking import uploader\nuploader.start_early()")
    command.communicate()
    assert command.returncode == 0 and list(workplace.iterdir()) == []


def test_a_stage_has_its_process_when_it_is_run_and_none_when_it_is_imported(workplace, monkeypatch):
    program = "import psutil, pipelines.stages.align; print(psutil.Process().children())"
    assert start(program).communicate()[0] == b"[]\n"
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")  # both processes tell on stderr what they import
    command = [sys.executable, "-m", "pipelines.stages", "subset"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)  # there is no params.yaml here
    assert told.returncode == 1 and " pipelines.tracking.following\n" in told.stderr
    command = [sys.executable, "-m", "pipelines.cli", "--help"]  # no stage
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Usage" in told.stdout and " pipelines.tracking.following\n" not in told.stderr
