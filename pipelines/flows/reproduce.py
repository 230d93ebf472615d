"""Flow `reproduce`: everything that a stage of dvc.yaml needs, and the stage itself, as one Prefect task per stage.

From plain Python: `vapi run --prefect`.
"""

import argparse
import sys
from typing import Annotated, Any

from prefect import flow, task
from prefect.states import Completed, State
from pydantic import Field, WithJsonSchema

from pipelines.config.loading import load_params
from pipelines.flows.running import gpu_tags, run_all, run_command, visible_gpus
from pipelines.messages import one_message
from pipelines.repository.graph import stage_graph, stage_names
from vapi_core.errors import FileError, VapiError


def target_schema() -> dict[str, Any]:
    """By this Prefect refuses what is no stage when it is submitted: dvc.yaml's stages when the flow was registered."""
    try:
        return {"type": "string", "pattern": f"^({'|'.join(stage_names())})(@.+)?$"}
    except FileError:  # which `stage_graph` tells
        return {"type": "string"}


Target = Annotated[str, WithJsonSchema(target_schema())]
Parallelism = Annotated[int, Field(ge=1, le=64)]


@task(retries=1, retry_delay_seconds=2)
def reproduce_stage(stage: str, gpus: list[str]) -> None:
    """One stage, which DVC skips if it is up to date."""
    run_command(["dvc", "--wait-for-lock", "repro", "--single-item", stage], f"stage-{stage}", gpus)


@flow(name="reproduce", flow_run_name="reproduce-{target}")
def reproduce(target: Target = "report", parallelism: Parallelism = 2) -> State:
    """Brings a stage of dvc.yaml up to date.

    Args:
        target: a stage or a group of stages, e.g. report, align, score@va-pi, table@noise.
        parallelism: stages that run at the same time, where the graph allows it.
    """
    graph = stage_graph(target)
    params = load_params()
    gpus = visible_gpus(params.device)
    tags, own = gpu_tags(gpus), gpus if params.launch.processes == 1 else []  # torchrun's processes see all

    def submit(stage: str, needs: list[Any]) -> Any:
        task_of_stage: Any = reproduce_stage.with_options(task_run_name=stage, tags=tags)
        return task_of_stage.submit(stage, own, wait_for=needs)

    states = run_all(graph, submit, parallelism)
    failed = [stage for stage, state in states.items() if not state.is_completed()]
    if failed:
        raise VapiError(f"{len(failed)} of {len(states)} stages did not end well: {', '.join(failed)}")
    return Completed(message=f"{len(states)} stages are up to date")


@one_message
def main() -> None:
    parser = argparse.ArgumentParser(description="Runs what a stage of dvc.yaml needs, as a Prefect flow.")
    parser.add_argument("--target", default="report")
    parser.add_argument("--parallelism", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.parallelism < 1:
        parser.error("--parallelism: at least 1")
    stage_graph(arguments.target)  # refuses an unknown one before Prefect has started anything
    reproduce(**vars(arguments))


if __name__ == "__main__":
    sys.exit(main())
