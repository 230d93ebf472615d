"""`python -m pipelines.commands.register data/aligned/va-pi/30`: aligned weights as a version of a model in MLflow's registry.

The version has the weights (safetensors, with their JSON) as artifacts of the run that trained them, and a link to it.
Weights that are registered under the name already are the version that they are.
"""

import argparse
import sys
from pathlib import Path

from pipelines.config.paths import RUN_FILE, remedy
from pipelines.frame.launch import one_message
from pipelines.frame.stage import outputs_hash
from pipelines.tracking.mlflow_runs import register_weights
from vapi_core.errors import FileError
from vapi_core.files import read_texts


@one_message
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.commands.register", description="Registers aligned weights as a model of MLflow's."
    )
    parser.add_argument("directory", type=Path, help="of one seed, e.g. data/aligned/va-pi/30")
    parser.add_argument("--name", help="of the model; without it PROFILE-VARIANT, e.g. mnist-va-pi")
    options = parser.parse_args(arguments)
    folder: Path = options.directory
    if len(folder.parts) < 2 or not (folder / RUN_FILE).is_file():
        advice = remedy(folder) if folder.is_relative_to("data/aligned") else "Name one such as data/aligned/va-pi/30."
        raise FileError(folder, "there are no weights of a run in it.", advice)
    run = read_texts(folder / RUN_FILE, ["key", "experiment"], remedy(folder))
    name = options.name or f"{run['experiment']}-{folder.parent.name}"
    version = register_weights(run["experiment"], run["key"], folder, name, outputs_hash(folder))
    print(f"Model {name}, version {version}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
