"""Whatever happens to a stage, MLflow holds exactly one live run of its key."""

import subprocess
import sys
import textwrap

import pytest

from pipelines import mlflow_runs, tracking
from pipelines.journal import Entry, Journal
from vapi_core.errors import ParameterError

DEAD_SERVER = "http://127.0.0.1:9"  # the discard port: nothing listens


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty working directory with its own database."""
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
        from pipelines import mlflow_runs, tracking
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
    assert "python -m pipelines.tracking upload" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["tracking", "upload"])
    with pytest.raises(SystemExit, match="still away"):
        tracking.main()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    tracking.main()
    tracking.main()  # again: nothing is left to send
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
    program = """
        import sys
        from pipelines import mlflow_runs, tracking
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


def python(program, directory, *arguments):
    """A process that runs `program` in `directory` with this repository on its path."""
    from pathlib import Path

    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n{textwrap.dedent(program)}"
    return subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=directory)
