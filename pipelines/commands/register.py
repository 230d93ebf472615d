"""Aligned weights as a version of a model in MLflow's registry: `vapi register`.

The version has the weights (safetensors, with their JSON) as artifacts of the run that trained them, and a link to it.
Weights that are registered under the name already are the version that they are.
"""

from pathlib import Path

from pipelines.config.paths import RUN_FILE, remedy
from pipelines.frame.stage import outputs_hash
from pipelines.tracking.mlflow_runs import register_weights
from vapi_core.errors import FileError
from vapi_core.files import read_texts


def register(folder: Path, name: str | None = None) -> None:
    """Registers the weights of one seed.

    Args:
        folder: e.g. data/aligned/va-pi/30.
        name: of the model; without it PROFILE-VARIANT, e.g. mnist-va-pi.

    Raises:
        FileError: there are no weights of a run in the folder.
    """
    if len(folder.parts) < 2 or not (folder / RUN_FILE).is_file():
        advice = remedy(folder) if folder.is_relative_to("data/aligned") else "Name one such as data/aligned/va-pi/30."
        raise FileError(folder, "there are no weights of a run in it.", advice)
    run = read_texts(folder / RUN_FILE, ["key", "experiment"], remedy(folder))
    name = name or f"{run['experiment']}-{folder.parent.name}"
    version = register_weights(run["experiment"], run["key"], folder, name, outputs_hash(folder))
    print(f"Model {name}, version {version}")
