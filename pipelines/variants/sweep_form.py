"""The form of an ablation sweep: what a researcher fills in, on the command line or in Prefect's pages."""

from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipelines.config.profiles import profile_names
from vapi_core.alignment.credit import Credit
from vapi_core.alignment.reward import RewardWeights

LONGEST_LIST = 10  # which Prefect checks when a form is submitted, so that no sweep has more than 9,000 cells
PRIOR_ONLY = "prior"  # the reward that has no term

MOST_CELLS = 1000  # of a search

Regularizer = Literal["ce", "kl", "none"]
Strategy = Literal["grid", "optuna"]
TERMS = tuple(field.name for field in fields(RewardWeights))
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
    if known := profile_names():
        schema["anyOf"][0]["enum"] = known


class SweepForm(BaseModel):
    """Every combination of the first five lists is a cell; a cell is one alignment with every seed.

    A search tries so many cells of your choice instead, between the smallest and the largest number of each list.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=_keep_order)

    noise_ratios: list[Annotated[float, Field(ge=0, le=1)]] = Field(
        min_length=1,
        max_length=LONGEST_LIST,
        json_schema_extra=NONE_TWICE | _opens_with([0.0, 0.25, 0.5, 0.75, 0.95]),
        description="ξ, 0 to 1: share of the prefix tokens that are replaced by random ones before the forward pass. "
        "0: the image's own tokens, as the paper has it for classes; 0.5 and 0.95 for texts.",
    )
    regularizer_weights: list[Annotated[float, Field(ge=0)]] = Field(
        min_length=1,
        max_length=LONGEST_LIST,
        json_schema_extra=NONE_TWICE | _opens_with([0.1]),
        description="β, 0 or more: weight of the regularizer beside the reward. Larger keeps the generator nearer to "
        "the data (ce) or to the base (kl). The paper has 0.1.",
    )
    regularizers: list[Regularizer] = Field(
        min_length=1,
        json_schema_extra=NONE_TWICE | _opens_with(["ce"]),
        description="What keeps the generator from drifting. ce: cross-entropy of the image's next token, as in the "
        "paper. kl: Kullback-Leibler divergence from the base. none: nothing, and β does not matter.",
    )
    reward_terms: list[Reward] = Field(
        min_length=1,
        max_length=LONGEST_LIST,
        json_schema_extra=NONE_TWICE | _opens_with(["mse+perceptual"]),
        description=f"What a reconstruction is judged by: terms joined by +, of {', '.join(TERMS)}; or {PRIOR_ONLY}: "
        "no reward, ce alone. mse and l1: distance of pixels. perceptual: distance of a network's features. "
        "embedding: cosine distance of the code vectors from what the encoder says of the image.",
    )
    credits: list[Credit] = Field(
        min_length=1,
        json_schema_extra=NONE_TWICE | _opens_with(["image"]),
        description="Whose error is a token's reward. image: the whole image's, as in the paper. token: that of the "
        "token's own patch. token-3x3: that of the patch and its neighbours.",
    )
    seeds: list[int] = Field(
        min_length=1,
        max_length=LONGEST_LIST,
        json_schema_extra=NONE_TWICE | _opens_with([4, 5, 6]),
        description="Whole numbers. Each cell is trained and drawn once with each, and costs as many times as much.",
    )
    steps: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Steps of each alignment, 1 or more. None: those of the profile."
    )
    profile: str | None = Field(
        None,
        json_schema_extra=_offer_profiles,
        description="A file of profiles/, without .yaml. None: params.yaml as it is.",
    )
    parallelism: int = Field(
        ge=1, le=64, json_schema_extra=_opens_with(1), description="Cells that run at the same time, 1 to 64."
    )
    threads: int = Field(
        ge=0,
        json_schema_extra=_opens_with(1),
        description="CPU threads of a cell, 0: all cores. Another number is another random draw.",
    )
    processes: int = Field(
        ge=1,
        json_schema_extra=_opens_with(1),
        description="Processes of a cell, 1 or more. With more than 1 a cell sees all GPUs: for models that need several, with "
        "parallelism 1.",
    )
    on_workers: bool = Field(
        json_schema_extra=_opens_with(False),
        description="On: cells run on all workers of the pool `cells`, on any machine. Off: on this machine.",
    )
    search: Strategy = Field(
        json_schema_extra=_opens_with("grid"),
        description="grid: every combination of the lists. optuna: TPE, which tries `cells` settings one after the "
        "other, each where those before scored well. ξ and β are then any number between the ends of their lists.",
    )
    cells: int = Field(
        ge=1,
        le=MOST_CELLS,
        json_schema_extra=_opens_with(20),
        description=f"Of a search: how many cells it may try, 1 to {MOST_CELLS}, those of earlier runs included. "
        "A grid does not look at it.",
    )
    search_seed: int = Field(
        ge=0,
        json_schema_extra=_opens_with(0),
        description="Of a search: seed of its own draws, 0 or more. Another one is another search.",
    )

    @model_validator(mode="after")
    def _check(self) -> "SweepForm":
        for name in ("noise_ratios", "regularizer_weights", "regularizers", "reward_terms", "credits", "seeds"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name}: an entry stands twice")
        if self.processes > 1 and (self.parallelism > 1 or self.on_workers):
            raise ValueError("processes: above 1 a cell has all GPUs: parallelism must be 1, without on_workers")
        return self


def opening_form(**changes: Any) -> SweepForm:
    """The form as it opens, the paper's table 5, with changes. Raises ValidationError."""
    fields = SweepForm.model_json_schema()["properties"]
    return SweepForm.model_validate({name: field["default"] for name, field in fields.items()} | changes)
