"""Flow `reproduce`: everything that a stage of dvc.yaml needs, and the stage itself, as one Prefect task per stage.

From plain Python: `python -m pipelines.flows.reproduce --target report`.
"""

import argparse
import sys
from typing import Any

from prefect import flow, task
from prefect.states import Completed, State

from pipelines.flows.running import gpu_tags, run_all, run_command
from pipelines.graph import stage_graph
from pipelines.params import load_params
from vapi_core.errors import VapiError


@task(retries=1, retry_delay_seconds=2)
def reproduce_stage(stage: str) -> None:
    """One stage, which DVC skips if it is up to date."""
    run_command(["dvc", "--wait-for-lock", "repro", "--single-item", stage], f"stage-{stage}")


@flow(name="reproduce", flow_run_name="reproduce-{target}")
def reproduce(target: str = "report", parallelism: int = 2) -> State:
    """Brings a stage of dvc.yaml up to date.

    Args:
        target: a stage or a group of stages, e.g. report, align, ablation-noise.
        parallelism: stages that run at the same time, where the graph allows it.
    """
    graph = stage_graph(target)
    tags = gpu_tags(load_params().device)

    def submit(stage: str, needs: list[Any]) -> Any:
        task_of_stage: Any = reproduce_stage.with_options(task_run_name=stage, tags=tags)
        return task_of_stage.submit(stage, wait_for=needs)

    states = run_all(graph, submit, parallelism)
    failed = [stage for stage, state in states.items() if not state.is_completed()]
    if failed:
        raise VapiError(f"{len(failed)} of {len(states)} stages did not end well: {', '.join(failed)}")
    return Completed(message=f"{len(states)} stages are up to date")


def main() -> None:
    parser = argparse.ArgumentParser(description="Runs what a stage of dvc.yaml needs, as a Prefect flow.")
    parser.add_argument("--target", default="report")
    parser.add_argument("--parallelism", type=int, default=2)
    try:
        reproduce(**vars(parser.parse_args()))
    except VapiError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
