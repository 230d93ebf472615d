"""Cells: one setting of VA-π with one seed, the unit of the paper's ablation tables and of every sweep.

A cell is known by what it changes in the section `align` of the params. `dvc repro cell` makes the cells of params.yaml
as it stands, which is what a sweep runs under changed params; the tables' own cells change what their table varies.
"""

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.comparison import SUBJECT
from pipelines.params import Params, RewardParams, check_params, decimal
from pipelines.paths import ABLATIONS, BASE
from vapi_core.errors import ParameterError, quoted

TABLES = ("noise", "regularizer", "reward")
PRIOR = "prior"  # no term of the reward: the regularizer alone
SETTINGS = ("noise_ratio", "regularizer", "regularizer_weight", "reward")  # the axes of tables and sweeps


@dataclass(frozen=True)
class Cell:
    """One row of a table, with one seed."""

    table: str  # one of TABLES; BASE: no alignment at all; SUBJECT: `align` as it stands
    row: str  # the name of the row in its table, "" for BASE and SUBJECT
    seed: int
    changes: dict[str, Any] = field(default_factory=dict)  # of `align`, nested as there

    @property
    def stage(self) -> str:
        """Name in dvc.yaml."""
        if self.table in TABLES:
            return f"ablation-{self.table}-cell@{self.row}-{self.seed}"
        return f"cell-base@{self.seed}" if self.table == BASE else f"cell@{self.seed}"

    @property
    def directory(self) -> Path:
        return ABLATIONS / self.table / self.row / str(self.seed)

    def apply(self, params: Params) -> Params:
        """The params under which the cell runs. Raises ParameterError where they cannot be."""
        content = params.model_dump()
        align = content["align"]
        reward = align["reward"] | self.changes.get("reward", {})
        content["align"] = align | self.changes | {"reward": reward, "methods": [SUBJECT]}
        content["rivals"] = {"methods": [], "temperatures": []}  # not this cell's business
        return check_params(content)

    def settings(self, params: Params) -> dict[str, Any]:
        """Its place on the axes SETTINGS; the base, which was not aligned, has none."""
        if self.table == BASE:
            return dict.fromkeys(SETTINGS)
        align = self.apply(params).align
        prior = align.regularizer != "none"
        return {
            "noise_ratio": align.noise_ratio,
            "regularizer": align.regularizer,
            "regularizer_weight": align.regularizer_weight if prior else 0.0,
            "reward": terms_of(align.reward),
        }


def terms_of(reward: RewardParams) -> str:
    """The terms that have a weight, e.g. "mse+perceptual"."""
    return "+".join(name for name, weight in reward.model_dump().items() if weight) or PRIOR


def keep_terms(reward: RewardParams, terms: str) -> dict[str, float]:
    """Weights that leave only some terms of the reward, e.g. "mse+perceptual"; PRIOR leaves none.

    A kept term has the weight it has in the params, or 1 where that is 0.

    Raises:
        ParameterError: there is no such term.
    """
    weights = reward.model_dump()
    kept = [] if terms == PRIOR else terms.split("+")
    for term in kept:
        if term not in weights:
            raise ParameterError(
                "reward", f"there is no term {quoted(term)}; there are {', '.join(weights)}, or {PRIOR}."
            )
    return {name: (weight or 1.0) if name in kept else 0.0 for name, weight in weights.items()}


def noise_cell(noise_ratio: float, seed: int) -> Cell:
    return Cell("noise", decimal(noise_ratio), seed, {"noise_ratio": noise_ratio})


def regularizer_cell(regularizer: str, weight: float, seed: int) -> Cell:
    changes = {"regularizer": regularizer, "regularizer_weight": weight}
    return Cell("regularizer", f"{regularizer}-{decimal(weight)}", seed, changes)


def reward_cell(parts: str, seed: int, reward: RewardParams) -> Cell:
    """The objective reduced to some of its parts: terms of the reward joined by +, or PRIOR, the regularizer alone."""
    if parts == PRIOR:
        return Cell("reward", parts, seed, {"reward": keep_terms(reward, PRIOR)})
    return Cell("reward", parts, seed, {"reward": keep_terms(reward, parts), "regularizer": "none"})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--base", action="store_true", help="no alignment at all")
    parser.add_argument("--noise-ratio", type=float, help="a row of the table of noise ratios")
    parser.add_argument("--regularizer", help="with the weight: a row of the table of regularizers")
    parser.add_argument("--regularizer-weight", type=float)
    parser.add_argument("--parts", help="a row of the table of rewards, e.g. mse+perceptual")


def cell_of(arguments: argparse.Namespace, params: Params) -> Cell:
    """The cell that a command line names; without any change that of `align` as it stands."""
    a = arguments
    if a.base:
        return Cell(BASE, "", a.seed)
    if a.noise_ratio is not None:
        return noise_cell(a.noise_ratio, a.seed)
    if a.regularizer is not None:
        return regularizer_cell(a.regularizer, a.regularizer_weight, a.seed)
    if a.parts is not None:
        return reward_cell(a.parts, a.seed, params.align.reward)
    return Cell(SUBJECT, "", a.seed)


def table_rows(params: Params, table: str) -> list[Cell]:
    """All cells of a table, base first, row by row, with every seed."""
    p, seeds = params.ablations, params.align.seeds
    cells = [Cell(BASE, "", seed) for seed in seeds]
    if table == "noise":
        cells += [noise_cell(ratio, seed) for ratio in p.noise_ratios for seed in seeds]
    elif table == "regularizer":
        cells += [
            regularizer_cell(kind, weight, seed)
            for kind in p.regularizers
            for weight in p.regularizer_weights
            for seed in seeds
        ]
    else:
        cells += [reward_cell(parts, seed, params.align.reward) for parts in p.objectives for seed in seeds]
        cells += [Cell(SUBJECT, "", seed) for seed in seeds]
    return cells
