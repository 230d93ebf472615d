"""What cells of sweeps came to: DVC's experiments in git, the scores in their commits, the runs of their seeds."""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml

from pipelines.config.loading import PARAMS_FILE, check_params
from pipelines.config.params import short_name
from pipelines.config.paths import RUN_FILE, SCORES
from pipelines.config.variant import Variant, find_variant
from pipelines.repository.git import experiments, git
from pipelines.variants.run_scores import metrics_by_seed
from pipelines.variants.score_files import GENEVAL_TABLE, SCORES_TABLE
from pipelines.variants.sweep import is_cell, variant_name
from vapi_core.errors import FileError, VapiError

DIGITS = 6  # of a score, as in the metrics files


@dataclass(frozen=True)
class FinishedCell:
    """A cell's experiment, as its commit has it."""

    experiment: str
    commit: str
    variant: Variant
    scores: dict[int, dict[str, float]]  # seed -> score, e.g. "score/fid/scorer" -> its value
    main: str  # the extractor that the profile judges by, as in the names of scores


def cells_of_head(root: Path = Path()) -> list[str]:
    """Names of the cells that build on git's HEAD. Raises FileError where there is no commit."""
    head = git(root, "rev-parse", "--verify", "--quiet", "HEAD").strip()
    if not head:
        raise FileError(root, "git has no commit here, on which experiments build.", "Run `git add -A; git commit`.")
    return [name for name in experiments(root, f"{head[:2]}/{head[2:]}") if is_cell(name)]


def read_cell(experiment: str, root: Path = Path()) -> FinishedCell:
    """A finished cell, by the name of its experiment. Raises FileError as `read_variant`."""
    return read_variant(experiment, variant_name(experiment), root)


def read_variant(experiment: str, name: str, root: Path = Path()) -> FinishedCell:
    """A variant or control that was scored in an experiment.

    Raises:
        FileError: there is no such experiment, or its params or the scores of a seed are missing or damaged.
    """
    commit = experiments(root).get(experiment)
    if commit is None:
        raise FileError(experiment, "there is no such experiment.", "Run the sweep again.")
    folder, path = SCORES, PARAMS_FILE
    try:
        params = check_params(yaml.safe_load(_read(root, commit, path)))
        variant = find_variant(params, name)
        folder = variant.scores
        path = folder / SCORES_TABLE
        table, judged = pd.read_csv(io.StringIO(_read(root, commit, path))), None
        if params.score.geneval is not None:
            path = folder / GENEVAL_TABLE
            judged = pd.read_csv(io.StringIO(_read(root, commit, path)))
        scores = metrics_by_seed(params, variant, table, judged)
    except (VapiError, ValueError, KeyError, yaml.YAMLError):
        problem = f"experiment {experiment} has no scores there that can be read."
        raise FileError(path, problem, _remedy(experiment)) from None
    for seed in variant.seeds:
        if not scores[seed] or scores[seed].keys() != scores[variant.seeds[0]].keys():
            raise FileError(path, f"experiment {experiment} lacks scores of seed {seed}.", _remedy(experiment))
    rounded = {seed: {n: float(f"{v:.{DIGITS}g}") for n, v in found.items()} for seed, found in scores.items()}
    return FinishedCell(experiment, commit, variant, rounded, short_name(params.score.extractors[-1]))


def read_scores(experiment: str, root: Path = Path()) -> dict[str, list[float]]:
    """Score of a finished cell -> its values over seeds. Raises as `read_cell`."""
    seeds = list(read_cell(experiment, root).scores.values())
    return {name: [scores[name] for scores in seeds] for name in seeds[0]}


def read_key(cell: FinishedCell, seed: int, root: Path = Path()) -> str | None:
    """Key of the MLflow run of a cell's seed, from the cell's output; None if DVC's cache has lost that."""
    from dvc.api import read
    from dvc.exceptions import DvcException

    try:
        return json.loads(read(str(cell.variant.output(seed) / RUN_FILE), str(root), cell.commit))["key"]
    except (DvcException, OSError):
        return None


def _read(root: Path, commit: str, path: Path) -> str:
    return git(root, "show", f"{commit}:{path}")


def _remedy(experiment: str) -> str:
    return f"Run `dvc exp remove {experiment}`, then the sweep again."
