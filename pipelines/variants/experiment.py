"""One DVC experiment in a clone of its own, beside any number of others: what runs a cell.

`python -m pipelines.variants.experiment --name NAME --baseline COMMIT --base COMMIT --set-param ... STAGE` does what a
person would do in another clone: it takes the files of `base`, changes params.yaml, and calls `dvc checkout`, `dvc
repro`, `dvc exp save --name NAME` and `dvc exp push`, which gives the experiment to this repository. With `--shared` it
is `dvc pull` for `dvc checkout`, and data, run cache and experiment go to the remotes of DVC and git, where other
machines find them. DVC's own command line runs in this process, so that it is loaded once.

Only one process of a name may run at a time, as `processes` sees to in a sweep.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

from dvc.cli import main as dvc
from dvc.utils.hydra import apply_overrides

from pipelines.config.paths import SHARED, WORK
from pipelines.messages import one_message
from pipelines.repository.clones import free_clone, new_files, start_from
from pipelines.repository.git import experiments
from pipelines.repository.graph import stage_graph
from pipelines.repository.lockfile import locked_stages, short_lock
from pipelines.repository.sharing import fetch_experiments, origin_url, push_small_outputs
from vapi_core.errors import VapiError


class DvcFailed(VapiError):
    """A command of DVC's ended with an error, which it has told."""


def run_dvc(*arguments: str, quiet: bool = False) -> None:
    """A command of DVC's; a quiet one says only why it fails. Raises DvcFailed."""
    code = dvc([*arguments, *(["--quiet"] if quiet else [])])
    if code != 0 and quiet:
        code = dvc(list(arguments))  # once more: DVC is quiet about its errors too
    if code != 0:
        raise DvcFailed(f"`dvc {' '.join(arguments[:2])}` ended with code {code}; what it said stands above.")


def run_experiment(name: str, baseline: str, base: str, overrides: list[str], stage: str, shared_by: str = "") -> None:
    """Runs a stage and what it needs in the clone that is the current folder, and gives its experiment to the origin.

    Args:
        baseline, base: commits, of which `base` has all the files.
        overrides: changes of params.yaml, in the grammar of `dvc exp run --set-param`.
        shared_by: address of the repository of several machines, which has the experiment too, once DVC's remote has
        its data.
    """
    start_from(Path(), baseline, base, SHARED)
    made = locked_stages(Path())
    if overrides:
        apply_overrides("params.yaml", overrides)
    needed = list(stage_graph(stage))
    with short_lock(needed):
        if there := [name for name in needed if name in made]:
            get = ["pull", "--run-cache"] if shared_by else ["checkout"]
            run_dvc(*get, "--force", "--allow-missing", *there, quiet=True)  # over what a killed attempt left
        run_dvc("repro", *(["--pull"] if shared_by else []), stage)
    untracked = [option for path in new_files(Path()) for option in ("--include-untracked", path)]
    run_dvc("exp", "save", "--force", "--name", name, *untracked, stage, quiet=True)
    if shared_by:
        with short_lock(needed):  # DVC (3.67) reads it four times for each stage
            run_dvc("push", "--run-cache", *needed, quiet=True)
            push_small_outputs(needed)
        run_dvc("exp", "push", "--no-cache", shared_by, name, quiet=True)  # unless another machine was first
    else:
        run_dvc("exp", "push", "--force", "--no-cache", "origin", name, quiet=True)


@one_message
def main() -> None:
    signal.signal(
        signal.SIGTERM, signal.SIG_DFL
    )  # at once: the stage ends with it, and whoever has the clone next tidies up
    parser = argparse.ArgumentParser(description="Runs one DVC experiment in a clone of this repository.")
    parser.add_argument("--name", required=True, help="of the experiment")
    parser.add_argument("--baseline", required=True, help="the commit that it builds on")
    parser.add_argument("--base", required=True, help="the experiment or commit whose files it begins with")
    parser.add_argument("--set-param", action="append", default=[], help="as of `dvc exp run`")
    parser.add_argument("--shared", action="store_true", help="other machines have a part: git's origin, DVC's remote")
    parser.add_argument("stage")
    options = parser.parse_args()
    root, work = Path.cwd(), WORK.resolve()
    if options.shared and options.name in fetch_experiments([options.name, options.base]):
        print(f"{options.name} is finished: origin has it.")
        return
    shared_by = origin_url(root) if options.shared else ""
    base = experiments().get(options.base, options.base)
    # the stages take assets, working files and the tracking database from the repository; their runs have the name
    os.environ |= {"VAPI_REPOSITORY": str(root), "VAPI_WORK": str(work), "DVC_EXP_NAME": options.name}
    os.environ["DVC_NO_ANALYTICS"] = "1"  # each command would start a process for it
    with free_clone(root, work / "clones") as clone:
        os.chdir(clone)
        run_experiment(options.name, options.baseline, base, options.set_param, options.stage, shared_by)
    if options.shared:
        fetch_experiments([options.name], root)


if __name__ == "__main__":
    sys.exit(main())
