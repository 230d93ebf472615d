"""Aligned weights become a version of a model in MLflow's registry, once."""

import pytest

from pipelines.cli.__main__ import main
from pipelines.frame.stage import outputs_hash
from pipelines.tracking import mlflow_runs
from pipelines.tracking import runs as tracking
from tests.tiny import tiny_generator
from vapi_core.files import write_json
from vapi_core.models.checkpoints import load_model, save_model

FOLDER = "data/aligned/va-pi/4"


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A run and the weights that it made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    folder = tmp_path / FOLDER
    save_model(folder, "generator", tiny_generator(seed=1), base_sha256="abc")
    write_json(folder / "run.json", {"key": "k1", "stage": "align@va-pi", "experiment": "digits"})
    with tracking.stage_run(experiment="digits", name="va-pi · seed 4", key="k1", params={}, tags={}) as run:
        run.made(outputs_hash(folder))
    return folder


def test_weights_are_a_version_with_its_run_and_come_back_whole(trained, tmp_path, capsys):
    for _ in range(2):  # the same weights are one version
        assert main(["register", FOLDER]) == 0
        assert capsys.readouterr().out == "Model digits-va-pi, version 1\n"
    client = mlflow_runs.connect()
    (version,) = client.search_model_versions("name = 'digits-va-pi'")
    assert client.get_run(version.run_id).info.run_name == "va-pi · seed 4"
    place = client.download_artifacts(version.run_id, "weights", str(tmp_path))
    assert load_model(place, "generator").config == tiny_generator().config
    save_model(trained, "generator", tiny_generator(seed=2), base_sha256="abc")
    assert main(["register", FOLDER, "--name", "digits-va-pi"]) == 0
    assert capsys.readouterr().out == "Model digits-va-pi, version 2\n"


def test_a_folder_without_weights_and_a_run_that_is_gone_are_told(trained, capsys):
    assert main(["register", "data/aligned/va-pi/9"]) == 1
    assert "dvc repro align@va-pi" in capsys.readouterr().err
    write_json(trained / "run.json", {"key": "k2", "stage": "align@va-pi", "experiment": "digits"})
    assert main(["register", FOLDER]) == 1
    assert "the run that made it is not in the experiment digits" in capsys.readouterr().err
