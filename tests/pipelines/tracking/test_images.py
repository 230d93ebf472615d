"""Pictures, load and origin of a run: they go the way of its metrics, and MLflow has each of them once."""

import json

import pytest
from PIL import Image

from pipelines.tracking import mlflow_runs
from pipelines.tracking import runs as tracking

DEAD_SERVER = "http://127.0.0.1:9"  # the discard port: nothing listens


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    for shade in (10, 20):
        Image.new("RGB", (8, 8), (shade, 0, 0)).save(f"{shade}.png")
    return tmp_path


def stage(**changes):
    description = {"experiment": "digits", "name": "align", "key": "k1", "params": {}, "tags": {}}
    return tracking.stage_run(**(description | changes))


def live():
    client = mlflow_runs.connect()
    (run,) = mlflow_runs.live_runs(client, mlflow_runs.find_or_create_experiment(client, "digits"), "k1")
    return client, run


def pictures() -> list[tuple[str, int, int]]:
    """Name, step and shade of the live run's pictures, as MLflow's page of a run finds them."""
    client, run = live()
    found = []
    for file in client.list_artifacts(run.info.run_id, "images"):
        if file.path.endswith(".png"):
            name, _, step, *_ = file.path.removeprefix("images/").split("+")
            with Image.open(client.download_artifacts(run.info.run_id, file.path)) as image:
                found.append((name, int(step), image.getpixel((0, 0))[0]))
    return sorted(found)


def report(workplace):
    with stage() as run:
        run.image("base and now", workplace / "10.png", 1)
        run.log({"loss": 1.0}, step=1)
        run.image("base and now", workplace / "20.png", 2)


def test_the_pictures_of_a_run_are_there_by_their_steps(workplace):
    report(workplace)
    assert pictures() == [("base and now", 1, 10), ("base and now", 2, 20)]
    _, run = live()
    assert run.data.tags["mlflow.loggedImages"] == "True" and run.data.metrics == {"loss": 1.0}


def test_pictures_wait_in_the_journal_while_the_server_is_away_and_are_sent_once(workplace, monkeypatch, capsys):
    address = f"sqlite:///{workplace}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", DEAD_SERVER)
    report(workplace)
    assert "vapi upload" in capsys.readouterr().err
    (workplace / "10.png").unlink()  # the stage's own file may go
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    journal = tracking.Journal(tracking.JOURNALS, "k1")
    for _ in range(2):  # a second time, the run is made anew
        assert tracking.upload([journal]).problems == []
        assert pictures() == [("base and now", 1, 10), ("base and now", 2, 20)]


def test_of_a_picture_that_was_drawn_anew_the_last_one_is_sent(workplace, monkeypatch):
    address = f"sqlite:///{workplace}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", DEAD_SERVER)
    with stage() as run:
        for shade in (10, 20):
            run.image("answer", workplace / f"{shade}.png", 0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    assert tracking.upload([tracking.Journal(tracking.JOURNALS, "k1")]).problems == []
    assert pictures() == [("answer", 0, 20)]


def test_a_run_made_anew_has_its_own_pictures_only(workplace):
    report(workplace)
    with stage() as run:
        run.image("base and now", workplace / "20.png", 1)
    assert pictures() == [("base and now", 1, 20)]


def test_pictures_of_the_outputs_come_with_their_scores_and_once(workplace):
    with stage() as run:
        run.made("the same")
    given = {"k1": [("samples", workplace / "10.png", 50), ("samples T0.8-g1.0", workplace / "20.png", 50)]}
    for _ in range(2):
        tracking.add_scores({"k1": {"score/fid/scorer": 1.5}}, {}, {"k1": "the same"}, images=given)
    assert pictures() == [("samples", 50, 10), ("samples T0.8-g1.0", 50, 20)]
    with stage() as run:  # trained again, to the same outputs
        run.made("the same")
    assert [name for name, *_ in pictures()] == ["samples", "samples T0.8-g1.0"]


def test_a_control_has_a_run_for_its_scores_alone_with_its_pictures_once(workplace):
    header = tracking.Header("digits", "base", "k1", tracking.now())
    given = {"k1": [("samples", workplace / "10.png", 0)]}
    for _ in range(2):
        tracking.add_scores({"k1": {"score/fid/scorer": 1.5}}, {"k1": header}, {"k1": "the same"}, images=given)
        tracking.Journal(tracking.JOURNALS, "k1").update(uploaded=False)
    assert pictures() == [("samples", 0, 10)]


def test_the_load_of_the_machine_is_measured_while_the_run_goes_on_and_sent_again_with_it(workplace, monkeypatch):
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    report(workplace)
    for _ in range(2):
        client, run = live()
        assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= set(run.data.metrics)
        assert len(client.get_metric_history(run.info.run_id, "system/cpu_utilization_percentage")) == 1
        tracking.upload([tracking.Journal(tracking.JOURNALS, "k1")])


def test_a_run_tells_where_it_comes_from_in_mlflows_own_tags(workplace, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/lab/pipelines/stages/__main__.py", "align", "va-pi"])
    facts = {"name": "mnist", "digest": "5f3a", "source_type": "local", "source": json.dumps({"uri": "mnist"})}
    with stage(dataset=facts | {"profile": json.dumps({"train": 3000})}):
        pass
    client, run = live()
    assert run.data.tags["mlflow.source.name"] == "stages align va-pi" and run.data.tags["mlflow.user"]
    (told,) = run.inputs.dataset_inputs
    assert (told.dataset.name, told.dataset.digest, told.tags[0].value) == ("mnist", "5f3a", "training")
    experiment = client.get_experiment(run.info.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
