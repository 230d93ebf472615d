"""Ablation sweeps: which cells a form asks for, and the command that runs each.

A cell is one setting of VA-π with all its seeds: stage `cell` of dvc.yaml under changed params. It runs as a DVC experiment in a temporary directory, named by a hash of
its parameters and of what it builds on: an experiment of that name is that cell, finished. All cells share one
experiment of everything before the alignment, whose stages they then take from DVC's cache.

The planning functions are pure; `read_baseline` and `experiments` look at the repository.
"""

import copy
import hashlib
import itertools
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipelines.repository.git import git
from pipelines.repository.lockfile import check_dvc_files
from vapi_core.errors import FileError, ParameterError, quoted
from vapi_core.files import read_yaml

LONGEST_LIST = 10  # which Prefect checks when a form is submitted, so that no sweep has more than 3,000 cells
METRICS = "reports/ablations/stages/cell@{seed}.json"  # of a cell, as in dvc.yaml
RUN = "data/ablations/va-pi/{seed}/run.json"  # names a cell's run in MLflow
CODE = ("params.yaml", "dvc.yaml", "pipelines", "vapi_core")  # what decides a cell's result, beside git's HEAD
UPSTREAM = ("classifier", "tokenize", "generator", "cell-base")
TARGETS = ("cell",)
METHOD = "va-pi"
PRIOR_ONLY = "prior"  # the reward that has no term

Regularizer = Literal["ce", "kl", "none"]
TERMS = ("mse", "perceptual", "l1", "embedding")
_TERM = f"({'|'.join(TERMS)})"
Reward = Annotated[str, Field(pattern=rf"^({PRIOR_ONLY}|{_TERM}(\+{_TERM})*)$")]
NONE_TWICE: dict[str, Any] = {"uniqueItems": True}


def _opens_with(value: Any) -> dict[str, Any]:
    """What Prefect's form shows in a field when it opens.

    It is no default of the field, which would stand in for one that was emptied: the form leaves that out.
    """
    return {"default": value}


def _keep_order(schema: dict[str, Any]) -> None:
    """Tells Prefect's form the order of the fields, which its database need not keep."""
    for position, field in enumerate(schema["properties"].values()):
        field["position"] = position


def _offer_profiles(schema: dict[str, Any]) -> None:
    """By this Prefect's form offers the profiles that are there when the flow is registered, and refuses any other."""
    if known := _profiles(Path()):
        schema["anyOf"][0]["enum"] = known


class SweepForm(BaseModel):
    """What a researcher fills in. Every combination of the first four lists is a cell; each cell runs every seed.

    Only `steps` and `profile` may be left out, which then are those of the params.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=_keep_order)

    noise_ratios: list[Annotated[float, Field(ge=0, le=1)]] = Field(
        min_length=1,
        max_length=LONGEST_LIST,
        json_schema_extra=NONE_TWICE | _opens_with([0.0, 0.25, 0.5, 0.75, 0.95]),
        description="ξ, share of prefix tokens replaced before the forward",
    )
    regularizer_weights: list[Annotated[float, Field(ge=0)]] = Field(
        min_length=1, max_length=LONGEST_LIST, json_schema_extra=NONE_TWICE | _opens_with([0.1]), description="β"
    )
    regularizers: list[Regularizer] = Field(min_length=1, json_schema_extra=NONE_TWICE | _opens_with(["ce"]))
    reward_terms: list[Reward] = Field(
        min_length=1,
        max_length=LONGEST_LIST,
        json_schema_extra=NONE_TWICE | _opens_with(["mse+perceptual"]),
        description=f"terms of the reward joined by +, of {', '.join(TERMS)}; or {PRIOR_ONLY}: no reward",
    )
    seeds: list[int] = Field(
        min_length=1, max_length=LONGEST_LIST, json_schema_extra=NONE_TWICE | _opens_with([4, 5, 6])
    )
    steps: Annotated[int, Field(ge=1)] | None = Field(
        None, description="of each alignment; empty: those of the profile"
    )
    profile: str | None = Field(
        None,
        json_schema_extra=_offer_profiles,
        description="a file of profiles/, without .yaml; empty: params.yaml as it is",
    )
    parallelism: int = Field(
        ge=1, le=64, json_schema_extra=_opens_with(1), description="cells that run at the same time"
    )
    threads: int = Field(
        ge=0,
        json_schema_extra=_opens_with(1),
        description="CPU threads of a cell, 0: all; another number rounds differently",
    )

    @model_validator(mode="after")
    def _check(self) -> "SweepForm":
        for name in ("noise_ratios", "regularizer_weights", "regularizers", "reward_terms", "seeds"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name}: an entry stands twice")
        return self


def opening_form(**changes: Any) -> SweepForm:
    """The form as it opens, the paper's table 5, with changes. Raises ValidationError."""
    fields = SweepForm.model_json_schema()["properties"]
    return SweepForm.model_validate({name: field["default"] for name, field in fields.items()} | changes)


@dataclass(frozen=True)
class Baseline:
    """What a sweep builds on."""

    revision: str  # hash of git's HEAD and of uncommitted changes to the code and params.yaml
    params: dict[str, Any]  # content of params.yaml
    profile: dict[str, Any]  # content of the form's profile; without one, that of params.yaml


@dataclass(frozen=True)
class Cell:
    """One experiment."""

    name: str
    setting: dict[str, Any]  # noise_ratio, regularizer, regularizer_weight, reward; empty for what the cells share
    overrides: dict[str, Any]  # dotted parameter -> value; +parameter: one that params.yaml lacks, ~: one that goes
    targets: tuple[str, ...]


def plan_upstream(form: SweepForm, baseline: Baseline) -> Cell:
    """The experiment of all that the cells share."""
    overrides = _differences(baseline.params, baseline.profile) | _shared_overrides(form)
    return Cell(f"upstream-{_hash(baseline, overrides)}", {}, overrides, UPSTREAM)


def plan_cells(form: SweepForm, baseline: Baseline) -> list[Cell]:
    """The cells of a form, in the order of its lists; without those that have nothing to learn from, which are the base.

    Raises:
        ParameterError: a cell breaks a rule between parameters, or there is no cell; names the parameter.
    """
    from pipelines.variants.loading import check_params  # imports torch, which takes seconds and the form does not need

    differences, shared = _differences(baseline.params, baseline.profile), _shared_overrides(form)
    cells: dict[str, Cell] = {}
    for noise, kind, weight, terms in itertools.product(
        form.noise_ratios, form.regularizers, form.regularizer_weights, form.reward_terms
    ):
        reward = _in_order(terms)
        weight = 0.0 if kind == "none" else weight
        if reward == PRIOR_ONLY and (
            kind != "ce" or weight == 0
        ):  # the KL of the base to itself has no gradient either
            continue
        setting = {"noise_ratio": noise, "regularizer": kind, "regularizer_weight": weight, "reward": reward}
        own = shared | {
            "align.noise_ratio": noise,
            "align.regularizer": kind,
            "align.regularizer_weight": weight,
            **_reward_overrides(reward, baseline),
        }
        if form.steps is not None:
            own["align.steps"] = form.steps
        check_params(_apply(own, baseline.profile))
        overrides = differences | own
        name = f"noise{noise:g}-{kind}{weight:g}-{reward}-{_hash(baseline, overrides)}"
        # of kind none all weights, and of a reward all orders of its terms, are one cell
        cells[name] = Cell(name, setting, overrides, TARGETS)
    if not cells:
        raise ParameterError("reward_terms", f"'{PRIOR_ONLY}' needs the regularizer ce and a weight above 0.")
    return list(cells.values())


def is_cell(name: str) -> bool:
    """Whether an experiment of this name is a cell that `plan_cells` planned.

    Any other one has the metrics of cells too, namely those that git has from before, which are not of its parameters.
    """
    return re.fullmatch(r"noise\S+-(ce|kl|none)\S+-[a-z0-9+]+-[0-9a-f]{8}", name) is not None


def sweep_name(cells: Iterable[Cell]) -> str:
    """Identity of a sweep: that of its cells, in any order."""
    return f"sweep-{_digest(sorted(cell.name for cell in cells))}"


def command(cell: Cell) -> list[str]:
    """The command that runs a cell."""
    line = ["python", "-m", "pipelines.variants.experiment", "--name", cell.name]
    for name, value in cell.overrides.items():
        line += ["--set-param", name if name.startswith("~") else f"{name}={_hydra(value)}"]
    return [*line, *cell.targets]


def _in_order(reward: str) -> str:
    """A reward whose terms stand in the order of TERMS, each once: one name for one reward."""
    return PRIOR_ONLY if reward == PRIOR_ONLY else "+".join(t for t in TERMS if t in reward.split("+"))


def _shared_overrides(form: SweepForm) -> dict[str, Any]:
    """Rivals are not a sweep's business: what they cannot be trained with is no reason to refuse a cell."""
    return {"threads": form.threads, "align.methods": [METHOD], "align.seeds": form.seeds, "rivals.methods": []}


def _reward_overrides(reward: str, baseline: Baseline) -> dict[str, Any]:
    """A chosen term has the weight of the profile, or 1 where that is 0."""
    chosen = () if reward == PRIOR_ONLY else reward.split("+")
    weights = baseline.profile["align"]["reward"]
    return {f"align.reward.{term}": float(weights[term] or 1.0) if term in chosen else 0.0 for term in TERMS}


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Overrides that make `new` of `old`."""
    changes: dict[str, Any] = {f"~{prefix}{name}": None for name in old if name not in new}
    for name, value in new.items():
        if name not in old:
            changes[f"+{prefix}{name}"] = value
        elif isinstance(value, dict) and isinstance(old[name], dict):
            changes |= _differences(old[name], value, f"{prefix}{name}.")
        elif value != old[name]:
            changes[f"{prefix}{name}"] = value
    return changes


def _apply(overrides: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
    """A copy of nested params with dotted overrides in place."""
    params = copy.deepcopy(params)
    for name, value in overrides.items():
        *path, last = name.split(".")
        section = params
        for part in path:
            section = section[part]
        section[last] = value
    return params


def _hydra(value: Any) -> str:
    """A value in the grammar of `dvc exp run --set-param`, which is Hydra's."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_hydra(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_hydra(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def _hash(baseline: Baseline, overrides: dict[str, Any]) -> str:
    return _digest([baseline.revision, overrides])


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def read_baseline(profile: str | None, root: Path = Path()) -> Baseline:
    """The repository as it is, uncommitted changes included: `dvc exp run` takes them along.

    Raises:
        ParameterError: there is no such profile.
        FileError: the folder has no git commit, or git cannot be asked; DVC cannot read its files.
    """
    check_dvc_files(root)
    params = read_yaml(root / "params.yaml")
    path = root / ("params.yaml" if profile is None else f"profiles/{profile}.yaml")
    if not path.is_file():
        known = ", ".join(_profiles(root))
        raise ParameterError("profile", f"there is no profile {quoted(profile)}; there are: {known}.")
    if not (head := git(root, "rev-parse", "--verify", "--quiet", "HEAD").strip()):
        raise FileError(root, "git has no commit here, which `dvc exp run` needs.", "Run `git add -A; git commit`.")
    revision = _digest([head, git(root, "diff", "HEAD", "--", *CODE)])
    return Baseline(revision, params, read_yaml(path))


def _profiles(root: Path) -> list[str]:
    return sorted(path.stem for path in (root / "profiles").glob("*.yaml"))


def experiments(root: Path = Path()) -> dict[str, str]:
    """Name -> commit of every DVC experiment here: git references refs/exps/BASELINE/NAME."""
    lines = git(root, "for-each-ref", "--format=%(refname:lstrip=4) %(objectname)", "refs/exps/*/*/*").splitlines()
    return {name: commit for name, _, commit in (line.rpartition(" ") for line in lines)}


def read_scores(cell: str, seeds: Iterable[int], root: Path = Path()) -> dict[str, list[float]]:
    """Score of a finished cell, e.g. "score/fid scorer-classifier" -> its values over seeds.

    Raises:
        FileError: there is no such experiment, or the metrics of a seed are missing, damaged or not those of the others.
    """
    remedy = f"Run `dvc exp remove {cell}`, then the sweep again."
    commit = experiments(root).get(cell)
    if commit is None:
        raise FileError(cell, "there is no such experiment.", "Run the sweep again.")
    values: list[dict[str, float]] = []
    for seed in seeds:
        path = METRICS.format(seed=seed)
        try:
            metrics = json.loads(git(root, "show", f"{commit}:{path}"))
            scores = {name: float(value) for name, value in metrics.items() if name.startswith("score/")}
        except (ValueError, TypeError, AttributeError, FileError):
            raise FileError(path, f"experiment {cell} has no scores there that can be read.", remedy) from None
        if not scores or (values and scores.keys() != values[0].keys()):
            raise FileError(path, f"experiment {cell} lacks scores of this seed.", remedy)
        values.append(scores)
    return {name: [scores[name] for scores in values] for name in values[0]}


def read_key(commit: str, seed: int, root: Path = Path()) -> str | None:
    """Key of the MLflow run of a cell's seed, from the cell's output; None if DVC's cache has lost that.

    Args:
        commit: of the cell's experiment.
    """
    from dvc.api import read
    from dvc.exceptions import DvcException

    try:
        return json.loads(read(RUN.format(seed=seed), str(root), commit))["key"]
    except (DvcException, OSError):
        return None
