"""A reply of MLflow's server that is lost makes no second live run. The server is MLflow's own, in this process."""

import pytest

from pipelines.tracking import mlflow_runs
from pipelines.tracking import runs as tracking


def live(key="k1"):
    client = mlflow_runs.connect()
    return mlflow_runs.live_runs(client, mlflow_runs.find_or_create_experiment(client, "digits"), key)


@pytest.mark.parametrize("times", [1, 3])  # the client asks three times, and gives up
@pytest.mark.parametrize("path", ["runs/create", "runs/delete", "experiments/create", "runs/log-batch"])
def test_a_lost_reply_makes_no_second_live_run(server, path, times, capsys):
    for attempt in range(2):  # the second one replaces the run of the first
        server.lose(path, times)
        with tracking.stage_run(
            experiment="digits", name="align", key="k1", params={"a": 1}, tags={}, parent="pipeline"
        ) as run:
            run.log({"loss": float(attempt)}, step=1)
    server.lose(path, 0)
    if "vapi upload" in capsys.readouterr().err:  # what was not sent after three lost replies
        tracking.upload(tracking.all_journals(tracking.JOURNALS)[0])
    assert server.seen.count(path) >= times
    (finished,) = live()
    assert finished.info.status == "FINISHED" and finished.data.metrics == {"loss": 1.0}
    assert finished.data.params == {"a": "1"}
    (parent,) = live(tracking.parent_key("digits", "pipeline"))
    assert finished.data.tags["mlflow.parentRunId"] == parent.info.run_id


@pytest.mark.parametrize("times", [1, 3])
def test_a_run_whose_creation_was_not_heard_of_is_taken_over(server, times, capsys):
    server.lose("runs/create", times)
    with tracking.stage_run(experiment="digits", name="align", key="k1", params={}, tags={}) as run:
        run.log({"loss": 0.5}, step=1)
    assert capsys.readouterr().err == ""
    assert [r.data.metrics for r in live()] == [{"loss": 0.5}]
