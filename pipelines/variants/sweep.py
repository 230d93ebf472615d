"""Ablation sweeps: which cells a form asks for, and the DVC experiment that runs each.

A cell is a variant that is not in params.yaml yet: VA-π with some settings, in the table `sweep`. Its experiment adds
the variant to the params and runs its stages, `score@VARIANT` the last. All cells share one experiment of everything
before the alignment and of the base, whose stages they then take from DVC's cache. A cell's experiment is named by the
variant and a hash of its parameters, of the code, and of the content of what it builds on, as that first experiment
made it: an experiment of that name is that cell, finished. Two machines that made unlike bases never share a name.

The planning functions are pure; `read_baseline` and `read_bases` look at the repository, `cells` at what experiments
came to.
"""

import copy
import hashlib
import itertools
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.config.loading import PARAMS_FILE, check_params
from pipelines.config.paths import SHARED
from pipelines.config.profiles import read_profile
from pipelines.config.variant import BASE, SUBJECT, SWEEP, Alignment, Variant, find_variant
from pipelines.repository.clones import state_of
from pipelines.repository.git import git
from pipelines.repository.lockfile import LOCK, check_dvc_files, output_hashes
from pipelines.variants.sweep_form import PRIOR_ONLY, TERMS, SweepForm
from vapi_core.errors import FileError, ParameterError
from vapi_core.files import read_yaml

CODE = ("params.yaml", "dvc.yaml", "pipelines", "vapi_core")  # what decides a cell's result, beside git's HEAD
AXES = ("noise_ratio", "regularizer", "regularizer_weight", "reward", "credit")
UPSTREAM = f"score-control@{BASE}"  # the base is scored with all that a cell needs before its alignment


@dataclass(frozen=True)
class Baseline:
    """What a sweep builds on."""

    head: str  # git's commit
    state: str  # commit of the files as they are: HEAD, or one on top of it that has the uncommitted changes
    revision: str  # hash of HEAD and of uncommitted changes to the code and params.yaml
    params: dict[str, Any]  # content of params.yaml
    profile: dict[str, Any]  # content of the form's profile; without one, that of params.yaml


@dataclass(frozen=True)
class Experiment:
    """One DVC experiment: a stage, with all that it needs, under changed params."""

    name: str
    baseline: str  # the commit that it builds on
    base: str  # the experiment or commit whose files it begins with
    overrides: dict[str, Any]  # dotted parameter -> value; +parameter: one that params.yaml lacks, ~: one that goes
    stage: str
    cell: Variant | None = None  # None: what the cells share


def plan_upstream(form: SweepForm, baseline: Baseline) -> Experiment:
    """The experiment of all that the cells share."""
    params = _shared_params(form, baseline)
    overrides = differences(baseline.params, params)
    name = f"upstream-{identity([baseline.revision, params])}"
    return Experiment(name, baseline.head, baseline.state, overrides, UPSTREAM)


def plan_cells(
    form: SweepForm, baseline: Baseline, bases: dict[str, str], seeds: list[int] | None = None
) -> list[Experiment]:
    """The cells of a form, in the order of its lists; without those that have nothing to learn from: the base.

    Args:
        bases: what the cells build on, as `read_bases` has it of the finished upstream.
        seeds: of the cells, where they are not those of the form, which what the cells share has.

    Raises:
        ParameterError: a cell breaks a rule between parameters, or there is no cell; names the parameter.
    """
    cells: dict[str, Experiment] = {}
    upstream = plan_upstream(form, baseline)
    for noise, kind, weight, terms, credit in itertools.product(
        form.noise_ratios, form.regularizers, form.regularizer_weights, form.reward_terms, form.credits
    ):
        reward = _in_order(terms)
        credit = credit if reward else "image"  # without a reward there is none to give
        weight = 0.0 if kind == "none" else weight
        if not reward and (kind != "ce" or weight == 0):  # the KL of the base to itself has no gradient either
            continue
        name = f"noise{_in_name(noise)}-{kind}{_in_name(weight)}-{'_'.join(reward) or PRIOR_ONLY}"
        name += f"-{credit}" if credit != "image" else ""
        changes = {
            "noise_ratio": noise,
            "regularizer": kind,
            "regularizer_weight": weight,
            "reward": _reward_weights(reward, baseline),
            "credit": credit,
            "keep_every": 0,
        }
        if form.steps is not None:
            changes["steps"] = form.steps
        params = _shared_params(form, baseline)
        params["align"]["seeds"] = form.seeds if seeds is None else seeds
        params["variants"][name] = {"table": SWEEP, "method": SUBJECT, "align": changes, "guidance_scales": [1.0]}
        cell = find_variant(check_params(params), name)
        overrides = differences(_shared_params(form, baseline), params)
        experiment = f"{name}-{identity([baseline.revision, params, bases])}"
        # of kind none all weights, of a reward all orders of its terms, and without one all credits are one cell
        cells[experiment] = Experiment(experiment, baseline.head, upstream.name, overrides, cell.stage("score"), cell)
    if not cells:
        raise ParameterError("reward_terms", f"'{PRIOR_ONLY}' needs the regularizer ce and a weight above 0.")
    return list(cells.values())


def is_cell(experiment: str) -> bool:
    """Whether an experiment of this name is a cell that `plan_cells` planned."""
    return re.fullmatch(r"noise\S+-(ce|kl|none)\S+-[a-z0-9_]+(-token(-3x3)?)?-[0-9a-f]{8}", experiment) is not None


def variant_name(experiment: str) -> str:
    """Name of the variant that a cell's experiment runs."""
    return experiment.rpartition("-")[0]


def setting(alignment: Alignment) -> dict[str, Any]:
    """Where a cell stands on each of AXES."""
    c = alignment.config
    weight = 0.0 if c.regularizer == "none" else c.regularizer_weight
    reward = "+".join(c.reward.terms) or PRIOR_ONLY
    return dict(zip(AXES, (c.noise_ratio, c.regularizer, weight, reward, c.credit), strict=True))


def sweep_name(cells: Iterable[Experiment]) -> str:
    """Identity of a sweep: that of its cells, in any order."""
    return f"sweep-{identity(sorted(cell.name for cell in cells))}"


def command(experiment: Experiment, shared: bool = False) -> list[str]:
    """The command that runs an experiment; `shared`: other machines have a part in its sweep."""
    line = ["python", "-m", "pipelines.variants.experiment", "--name", experiment.name]
    line += ["--baseline", experiment.baseline, "--base", experiment.base]
    for name, value in experiment.overrides.items():
        line += ["--set-param", name if name.startswith("~") else f"{name}={_hydra(value)}"]
    return [*line, *(["--shared"] if shared else []), experiment.stage]


def _in_order(reward: str) -> list[str]:
    """The terms of a reward in the order of TERMS, each once: one name for one reward."""
    return [term for term in TERMS if term in reward.split("+")]


def _in_name(value: float) -> str:
    """A number in the name of a variant, which has neither dot nor plus."""
    return f"{value:g}".replace(".", "_").replace("+", "")


def _shared_params(form: SweepForm, baseline: Baseline) -> dict[str, Any]:
    """The content of params.yaml for all experiments of a sweep, each of which stays on one machine."""
    params = copy.deepcopy(baseline.profile)
    params["threads"] = form.threads
    params["launch"] |= {"nodes": 1, "processes": form.processes}
    params["align"]["seeds"] = form.seeds
    return params


def _reward_weights(terms: list[str], baseline: Baseline) -> dict[str, float]:
    """A chosen term has the weight of the profile, or 1 where that is 0."""
    weights = baseline.profile["align"]["reward"]
    return {term: float(weights[term] or 1.0) if term in terms else 0.0 for term in TERMS}


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Overrides that make `new` of `old`."""
    changes: dict[str, Any] = {f"~{prefix}{name}": None for name in old if name not in new}
    for name, value in new.items():
        if name not in old:
            changes[f"+{prefix}{name}"] = value
        elif isinstance(value, dict) and isinstance(old[name], dict):
            changes |= differences(old[name], value, f"{prefix}{name}.")
        elif value != old[name]:
            changes[f"{prefix}{name}"] = value
    return changes


def _hydra(value: Any) -> str:
    """A value in the grammar of `dvc exp run --set-param`, which is Hydra's."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_hydra(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_hydra(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def identity(content: Any) -> str:
    """A short hash that names whatever JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def read_baseline(profile: str | None, root: Path = Path()) -> Baseline:
    """The repository as it is, uncommitted changes of known files included.

    Raises:
        ParameterError: there is no such profile.
        FileError: the folder has no git commit, or git cannot be asked; DVC cannot read its files.
    """
    check_dvc_files(root)
    params = read_yaml(root / PARAMS_FILE)
    content = params if profile is None else read_profile(profile, root)
    if not (head := git(root, "rev-parse", "--verify", "--quiet", "HEAD").strip()):
        raise FileError(root, "git has no commit here, on which experiments build.", "Run `git add -A; git commit`.")
    revision = identity([head, git(root, "diff", "HEAD", "--", *CODE)])
    return Baseline(head, state_of(root), revision, params, content)


def read_bases(commit: str, root: Path = Path()) -> dict[str, str]:
    """Folder -> DVC's hash of its content, of all that cells build on, as the upstream's commit has it in dvc.lock.

    Raises:
        FileError: the commit has no dvc.lock, or git cannot be asked.
    """
    outputs = output_hashes(git(root, "show", f"{commit}:{LOCK}"))
    return {path: digest for path, digest in outputs.items() if any(Path(path).is_relative_to(base) for base in SHARED)}
