"""Whatever happens to a stage, MLflow holds exactly one live run of its key."""

import shutil
import signal
import subprocess
import sys
import textwrap

import pytest

from pipelines.tracking import mlflow_runs
from pipelines.tracking import runs as tracking
from pipelines.tracking.__main__ import main
from pipelines.tracking.journal import Entry, Journal
from pipelines.tracking.mlflow_runs import valid_name
from vapi_core.errors import ParameterError

DEAD_SERVER = "http://127.0.0.1:9"  # the discard port: nothing listens


@pytest.fixture
def workplace(tmp_path, monkeypatch, empty_store):
    """A working directory with its own database, and nothing else."""
    shutil.copy(empty_store, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return tmp_path


def stage(key="k1", **changes):
    description = {"experiment": "digits", "name": "align@va-pi-0", "key": key, "params": {"beta": 0.1}, "tags": {}}
    return tracking.stage_run(**(description | changes))


def live(key="k1"):
    client = mlflow_runs.connect()
    return mlflow_runs.live_runs(client, mlflow_runs.find_or_create_experiment(client, "digits"), key)


def history(run, metric):
    return [(m.step, m.value) for m in mlflow_runs.connect().get_metric_history(run.info.run_id, metric)]


def test_a_key_follows_stage_params_and_upstream_but_not_the_order_of_a_dict():
    key = tracking.stage_key("align", {"a": 1, "b": [1, 2]}, ["x", "y"])
    assert key == tracking.stage_key("align", {"b": (1, 2), "a": 1}, ["y", "x"])
    assert key != tracking.stage_key("align", {"a": 2, "b": [1, 2]}, ["x", "y"])
    assert key != tracking.stage_key("align", {"a": 1, "b": [1, 2]}, ["x", "z"])
    assert key != tracking.stage_key("sample", {"a": 1, "b": [1, 2]}, ["x", "y"])


def test_a_finished_stage_is_one_run_with_params_curves_and_artifacts(workplace):
    (workplace / "grid.png").write_bytes(b"picture")
    with stage(params={"reward": {"mse": 1.0}, "seeds": [0, 1]}, tags={"stage": "align"}, parent="pipeline") as run:
        for step in range(1, 4):
            run.log({"train/reward": -1.0 / step, "train/kl": float("nan")}, step=step)
        run.artifact(workplace / "grid.png")
    (finished,) = live()
    assert finished.info.status == "FINISHED"
    assert finished.data.params == {"reward.mse": "1.0", "seeds": "[0, 1]"}
    assert history(finished, "train/reward") == [(1, -1.0), (2, -0.5), (3, pytest.approx(-1 / 3))]
    assert [f.path for f in mlflow_runs.connect().list_artifacts(finished.info.run_id)] == ["grid.png"]
    (parent,) = live(tracking.parent_key("digits", "pipeline"))
    assert finished.data.tags["mlflow.parentRunId"] == parent.info.run_id


def test_a_retry_replaces_the_failed_run(workplace):
    with pytest.raises(RuntimeError), stage() as run:
        run.log({"loss": 1.0}, step=1)
        raise RuntimeError("out of memory")
    assert [r.info.status for r in live()] == ["FAILED"]
    with stage() as run:
        run.log({"loss": 0.5}, step=1)
    (finished,) = live()
    assert finished.info.status == "FINISHED" and history(finished, "loss") == [(1, 0.5)]


def test_an_interrupt_ends_the_run_as_killed(workplace):
    with pytest.raises(KeyboardInterrupt), stage():
        raise KeyboardInterrupt
    assert [r.info.status for r in live()] == ["KILLED"]


def test_a_killed_process_leaves_a_run_that_the_next_attempt_replaces(workplace):
    program = """
        import os, time
        from pipelines.tracking import mlflow_runs
        from pipelines.tracking import runs as tracking
        with tracking.stage_run(experiment="digits", name="a", key="k1", params={}, tags={}) as run:
            run.log({"loss": 1.0}, step=1)
            while not mlflow_runs.live_runs(mlflow_runs.connect(), "1", "k1"):
                time.sleep(0.05)
            os.kill(os.getpid(), 9)
    """
    assert python(program, workplace).wait() == -9
    assert [r.info.status for r in live()] == ["RUNNING"]
    with stage() as run:
        run.log({"loss": 0.5}, step=1)
    assert [r.info.status for r in live()] == ["FINISHED"]


def test_without_a_server_the_stage_finishes_and_its_metrics_can_be_sent_later(workplace, monkeypatch, capsys):
    uri = f"sqlite:///{workplace}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", DEAD_SERVER)
    with stage() as run:
        for step in range(1, 6):
            run.log({"loss": float(step)}, step=step)
    assert "vapi upload" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["tracking", "upload"])
    with pytest.raises(SystemExit, match="still away"):
        main()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    main()
    main()  # again: nothing is left to send
    (sent,) = live()
    assert sent.info.status == "FINISHED" and history(sent, "loss") == [(s, float(s)) for s in range(1, 6)]


def test_what_needs_the_server_names_the_setting_where_it_is_away(workplace, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", DEAD_SERVER)
    for ask in (
        lambda: mlflow_runs.find_runs("digits", ""),
        lambda: mlflow_runs.register_view("digits", "key", "view"),
    ):
        with pytest.raises(ParameterError, match=f"MLFLOW_TRACKING_URI: {DEAD_SERVER} does not answer"):
            ask()


def test_scores_join_the_run_of_the_stage_they_belong_to(workplace):
    with stage() as run:
        run.log({"loss": 1.0}, step=1)
    header = Journal(tracking.JOURNALS, "k1").header()
    tracking.add_scores({"k1": {"score/fid": 7.65}}, {"k1": header})
    (scored,) = live()
    assert scored.data.metrics["score/fid"] == 7.65 and history(scored, "loss") == [(1, 1.0)]


def test_scores_make_a_run_where_none_is_left(workplace):
    header = tracking.Header("digits", "align@va-pi-0", "k9", tracking.now())
    tracking.add_scores({"k9": {"score/fid": 7.65}}, {"k9": header})
    (scored,) = live("k9")
    assert scored.info.status == "FINISHED" and scored.data.metrics["score/fid"] == 7.65


def test_processes_that_start_together_on_a_fresh_database_all_succeed(workplace):
    (workplace / "mlflow.db").unlink()
    program = """
        import sys
        from pipelines.tracking import mlflow_runs
        from pipelines.tracking import runs as tracking
        with tracking.stage_run(experiment="digits", name="cell", key=sys.argv[1], params={}, tags={}) as run:
            run.log({"loss": 1.0}, step=1)
    """
    processes = [python(program, workplace, f"cell-{i}") for i in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    for i in range(3):
        assert [r.info.status for r in live(f"cell-{i}")] == ["FINISHED"]


def test_a_line_torn_by_a_kill_costs_that_line_only(tmp_path):
    journal = Journal(tmp_path, "k1")
    journal.begin(tracking.Header("digits", "a", "k1", 0))
    journal.append(Entry(1, 1, {"loss": 1.0}))
    with (tmp_path / "k1" / "metrics.jsonl").open("a") as file:
        file.write('{"time": 2, "step": 2, "met')
    journal.append(Entry(3, 3, {"loss": 3.0}))
    assert [entry.step for entry in journal.entries()[0]] == [1, 3]


def test_a_journal_is_read_on_from_where_it_was_read_to_and_never_in_the_middle_of_a_line(tmp_path):
    journal = Journal(tmp_path, "k1")
    journal.begin(tracking.Header("digits", "a", "k1", 0))
    journal.append(Entry(1, 1, {"loss": 1.0}))
    first, read = journal.entries()
    path = tmp_path / "k1" / "metrics.jsonl"
    journal.append(Entry(2, 2, {"loss": 2.0}))
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])  # as it is while the line is written
    assert ([entry.step for entry in first], journal.entries(read)) == ([1], ([], read))
    path.write_bytes(whole)
    assert [entry.step for entry in journal.entries(read)[0]] == [2]


TWELVE = {f"score/metric-{i}": float(i) for i in range(12)}


def train(outputs):
    """A stage that makes something of this hash."""
    with stage() as run:
        run.log({"loss": 1.0}, step=1)
        run.made(outputs)


def header(key="k1"):
    return tracking.Header("digits", "align@va-pi-0", key, tracking.now())


def score(metrics, outputs, source="score"):
    tracking.add_scores({"k1": metrics}, {"k1": header()}, {"k1": outputs}, source)


def scores(run):
    return {name: value for name, value in run.data.metrics.items() if name.startswith("score/")}


def test_a_run_made_anew_has_the_scores_of_its_outputs_and_no_other_ones(workplace):
    train("the same")
    score(TWELVE, "the same")
    train("the same")  # DVC skips `score`: its inputs are as they were
    (again,) = live()
    assert scores(again) == TWELVE and history(again, "loss") == [(1, 1.0)]
    train("another")  # whose scores `score` has yet to find out
    assert [scores(run) for run in live()] == [{}]


def test_a_failed_attempt_has_no_scores_and_the_one_after_it_has_them_again(workplace):
    train("the same")
    score(TWELVE, "the same")
    with pytest.raises(RuntimeError), stage():
        raise RuntimeError("out of memory")
    assert [scores(run) for run in live()] == [{}]
    train("the same")
    assert [scores(run) for run in live()] == [TWELVE]


def test_scores_that_are_found_out_again_replace_those_of_the_same_source(workplace):
    train("the same")
    score(TWELVE, "the same")
    score({"score/overall geneval": 0.5}, "the same", "score, geneval")
    score({"score/metric-0": 7.0}, "the same")
    (scored,) = live()
    assert scores(scored) == {"score/metric-0": 7.0, "score/overall geneval": 0.5}
    assert history(scored, "score/metric-0") == [(0, 7.0)]


def test_scores_that_an_earlier_version_appended_to_the_journal_are_sent_once(workplace):
    train("the same")
    for value in (1.0, 2.0):
        Journal(tracking.JOURNALS, "k1").append(Entry(tracking.now(), 0, {"score/metric-0": value}))
    score({"score/metric-0": 7.0}, "the same")
    assert [history(run, "score/metric-0") for run in live()] == [[(0, 7.0)]]


def test_where_working_files_are_lost_a_run_keeps_what_it_has_and_is_scored_once(workplace):
    train("the same")
    shutil.rmtree(workplace / ".work")
    for _ in range(2):
        score(TWELVE, "the same")
    (scored,) = live()
    assert scores(scored) == TWELVE and history(scored, "loss") == [(1, 1.0)]
    assert history(scored, "score/metric-3") == [(0, 3.0)]
    shutil.rmtree(workplace / ".work")
    train("the same")  # the run before is asked
    assert [scores(run) for run in live()] == [TWELVE]
    shutil.rmtree(workplace / ".work")
    train("another")
    assert [scores(run) for run in live()] == [{}]


LONG = "x" * 251


@pytest.mark.parametrize(
    "name",
    [
        "score/fid held-out (web)",
        LONG,
        f"{LONG}/{LONG}",
        "",
        "a//b",
        "/a",
        "../a",
        "a/.",
        "a\nb",
        "a\n",
        "β=0.1",
        "\ud800",
    ],
)
def test_every_name_becomes_one_that_mlflow_takes(name):
    from mlflow.utils import validation

    valid = valid_name(name)
    validation._validate_metric(valid, 1.0, 0, 0)
    validation._validate_param(valid, "value")
    validation._validate_tag(valid, "value")
    assert valid_name(valid) == valid


def test_a_name_that_mlflow_takes_stays_and_two_names_stay_two():
    for name in ("score/fid scorer-classifier T0.9 g1.5", "member.sweep-1", "train/ce", "ξ", "x" * 250):
        assert valid_name(name) == name
    assert valid_name("web (a)").startswith("web -a- ")
    assert len({valid_name(name) for name in ("web (a)", "web [a]", f"{LONG}a", f"{LONG}b")}) == 4


def test_names_that_mlflow_refuses_reach_it_in_another_spelling(workplace, capsys):
    with stage(params={"held-out (web)": 1, LONG: 2}, tags={"what?": "a tag"}) as run:
        run.log({"score/fid held-out (web)": 7.5, LONG: 1.0})
    (finished,) = live()
    assert capsys.readouterr().err == "" and finished.info.status == "FINISHED"
    assert finished.data.metrics[valid_name("score/fid held-out (web)")] == 7.5
    assert finished.data.params == {valid_name("held-out (web)"): "1", valid_name(LONG): "2"}


def upload_command(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tracking", "upload"])
    return main()


def keep_unsent(key, **changes):
    """A journal of a finished stage that was not sent."""
    journal = Journal(tracking.JOURNALS, key)
    journal.begin(tracking.Header(**({"experiment": "digits", "name": key, "key": key, "start_time": 1} | changes)))
    journal.append(Entry(1, 1, {"loss": 1.0}))
    journal.update(status="FINISHED", end_time=2)
    return journal


def test_a_bad_journal_is_named_and_passed_over_and_all_others_are_sent(workplace, monkeypatch, capsys):
    bad = [keep_unsent(key, start_time=0) for key in ("no bytes", "no metrics", "no run", "no time")]
    (bad[0].directory / "run.json").write_bytes(b"")
    (bad[1].directory / "metrics.jsonl").unlink()
    (bad[2].directory / "run.json").write_text('{"header": {"name": "a"}, "status": "FINISHED", "uploaded": false}')
    keep_unsent("no time", start_time="yesterday")
    keep_unsent("refused", experiment="")
    keep_unsent("good", start_time=5)
    with pytest.raises(SystemExit) as caught:
        upload_command(monkeypatch)
    told = capsys.readouterr().err
    assert caught.value.code == 1
    for journal in bad:
        assert f"{journal.directory}/" in told and f"to be rid of it, remove {journal.directory}." in told
    assert "error: not sent: refused: MLflow refuses what the run reports" in told and "Invalid experiment name" in told
    assert "away" not in told and "sent good" in told
    assert [run.info.status for run in live("good")] == ["FINISHED"]


def test_a_run_of_which_mlflow_refuses_something_does_not_stay_open(workplace, monkeypatch, capsys):
    monkeypatch.setattr(mlflow_runs, "valid_name", lambda name: name)
    with stage() as run:
        run.log({"held-out (web)": 1.0})
    told = capsys.readouterr().err
    assert "MLflow refuses what the run reports" in told and "away" not in told
    assert [run.info.status for run in live()] == ["FAILED"]


def test_a_stage_goes_on_beside_a_bad_journal(workplace, capsys):
    broken = keep_unsent("broken").directory / "run.json"
    broken.write_bytes(b"")
    with stage() as run:
        run.log({"loss": 1.0}, step=1)
    assert [run.info.status for run in live()] == ["FINISHED"]


KILLED = """
    import os
    from pipelines.tracking import mlflow_runs
    from pipelines.tracking import runs as tracking
    with tracking.stage_run(experiment="digits", name="a", key="killed", params={}, tags={}) as run:
        run.log({"loss": 1.0}, step=1)
        while not mlflow_runs.live_runs(mlflow_runs.connect(), "1", "killed"):
            pass
        os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("command", ["upload", "results", "stage"])
def test_the_run_of_a_killed_stage_is_closed_by_the_next_command(workplace, monkeypatch, command):
    assert python(KILLED, workplace).wait() == -signal.SIGKILL
    assert [run.info.status for run in live("killed")] == ["RUNNING"]
    if command == "upload":
        upload_command(monkeypatch)
    elif command == "results":
        tracking.close_killed()
    else:
        with stage():
            pass
        assert [run.info.status for run in live()] == ["FINISHED"]
    (killed,) = live("killed")
    assert killed.info.status == "KILLED" and history(killed, "loss") == [(1, 1.0)]
    assert killed.info.end_time >= killed.info.start_time
    assert tracking.killed_journals() == []


def test_the_run_of_a_killed_stage_is_asked_for_again_where_mlflow_goes_away_meanwhile(workplace, monkeypatch):
    assert python(KILLED, workplace).wait() == -signal.SIGKILL

    def away(run, entries):
        raise ConnectionError("gone")

    with monkeypatch.context() as patched:
        patched.setattr(mlflow_runs.RemoteRun, "send", away)
        assert "gone" in tracking.upload(tracking.killed_journals()).away
    (waiting,) = tracking.killed_journals()
    assert tracking.upload([waiting]) == tracking.Report()
    assert [run.info.status for run in live("killed")] == ["KILLED"] and tracking.killed_journals() == []
    assert waiting.state()["uploaded"] and waiting.state()["status"] == "KILLED"


def test_the_journal_of_a_stage_at_work_is_left_alone(workplace, monkeypatch):
    program = """
        import sys
        from pipelines.tracking import runs as tracking
        with tracking.stage_run(experiment="digits", name="a", key="working", params={}, tags={}) as run:
            run.log({"loss": 1.0}, step=1)
            print("ready", flush=True)
            sys.stdin.read()
    """
    with python(program, workplace, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as working:
        assert working.stdout.readline() == b"ready\n"
        upload_command(monkeypatch)
        tracking.close_killed()
        state = Journal(tracking.JOURNALS, "working").state()
        assert state["status"] == "RUNNING" and not state["uploaded"]
        working.stdin.close()
    assert [run.info.status for run in live("working")] == ["FINISHED"]


def test_no_message_shows_a_password(workplace, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://lab:s3cr3t@127.0.0.1:9")
    with stage() as run:
        run.log({"loss": 1.0}, step=1)
    with pytest.raises(ParameterError) as refused:
        mlflow_runs.find_runs("digits", "")
    with pytest.raises(SystemExit) as upload:
        upload_command(monkeypatch)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://lab:s3cr3t@127.0.0.1:9/mlflow")
    with pytest.raises(ParameterError) as unreachable:
        mlflow_runs.find_runs("digits", "")
    told = [capsys.readouterr().err, *(str(caught.value) for caught in (refused, upload, unreachable))]
    assert all("127.0.0.1" in text and "s3cr3t" not in text for text in told)
    assert "lab:***@127.0.0.1" in told[1] and "lab:***@127.0.0.1" in told[3]


def python(program, directory, *arguments, **options):
    """A process that runs `program` in `directory` with this repository on its path."""
    from pathlib import Path

    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[3])!r})\n{textwrap.dedent(program)}"
    return subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=directory, **options)
