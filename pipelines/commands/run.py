"""Brings stages of dvc.yaml up to date: by DVC in this process, as an experiment of DVC's, or as a Prefect flow."""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from pipelines.commands import readme
from pipelines.config.paths import REPORTS
from pipelines.repository.lockfile import check_dvc_files, check_run_cache
from vapi_core.errors import ParameterError

REPORT = "report"


def run(targets: Sequence[str], changes: Sequence[str] = (), name: str | None = None, tasks: int | None = None) -> int:
    """Brings the targets up to date, and all that they need; returns the exit code.

    Args:
        changes: of params, `name=value`; with any it is an experiment of DVC's, in this folder.
        name: of the experiment; with one it is an experiment, whether there are changes or not.
        tasks: stages at the same time, as tasks of a Prefect flow.

    Raises:
        ParameterError: a flow cannot be an experiment too.
        FileError: DVC cannot read its files or its run cache.
    """
    if tasks is not None:
        if changes or name:
            raise ParameterError(
                "--prefect", "it goes neither with --set-param nor with --name; `vapi sweep` has both."
            )
        return _run_flow(targets, tasks)
    return _told(_run_dvc(dvc_command(targets, changes, name)), targets)


def dvc_command(targets: Sequence[str], changes: Sequence[str], name: str | None) -> list[str]:
    """What is typed behind `dvc`."""
    if name is None and not changes:
        return ["repro", *targets]
    named = [] if name is None else ["--name", name]
    return ["exp", "run", *named, *(part for change in changes for part in ("--set-param", change)), *targets]


def report(table: str | None = None, fill_readme: bool = False) -> int:
    """Makes the page of a table anew if what it shows has changed, and nothing before it; returns the exit code."""
    target = REPORT if table in (None, REPORT) else f"table@{table}"
    code = _told(_run_dvc(["repro", "--single-item", target]), [target])
    if code == 0 and fill_readme:
        readme.fill()
    return code


def page_of(target: str) -> Path | None:
    """Where a target's page is; None where it has none."""
    kind, _, name = target.partition("@")
    page = {REPORT: REPORT, "table": name}.get(kind)
    return REPORTS / f"{page}.md" if page else None


def _run_flow(targets: Sequence[str], tasks: int) -> int:
    from pipelines.flows.reproduce import reproduce
    from pipelines.repository.graph import stage_graph

    for target in targets:
        stage_graph(target)  # refuses an unknown one before Prefect has started anything
    for target in targets:
        reproduce(target, tasks)
    return _told(0, targets)


def _run_dvc(arguments: Sequence[str]) -> int:
    _use_own_programs()
    from dvc.cli import main

    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as in DVC's own program: at once, and the stage ends with it
    return _explained(main(list(arguments)))


def _explained(code: int) -> int:
    """The exit code. Raises FileError where damaged files are why DVC has failed."""
    if code != 0:
        check_dvc_files()
        check_run_cache()
    return code


def _told(code: int, targets: Sequence[str]) -> int:
    if code == 0:
        for page in filter(None, map(page_of, targets)):
            print(f"The report: {page}")
    return code


def _use_own_programs() -> None:
    """Stages run `python` and `git` by name: the Python is this one, whether its environment is activated or not."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    os.environ.setdefault("DVC_NO_ANALYTICS", "1")
