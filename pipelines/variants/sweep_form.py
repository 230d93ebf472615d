"""The form of an ablation sweep: what a researcher fills in, on the command line or in Prefect's pages."""

from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipelines.config.profiles import profile_names
from vapi_core.alignment.credit import Credit
from vapi_core.alignment.reward import RewardWeights

LONGEST_LIST = 10  # which Prefect checks when a form is submitted, so that no sweep has more than 9,000 cells
PRIOR_ONLY = "prior"  # the reward that has no term

Regularizer = Literal["ce", "kl", "none"]
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
    """What a researcher fills in. Every combination of the first five lists is a cell; each cell runs every seed.

    Only `steps` and `profile` may be left out, which then are those of the params, and `processes` and `on_workers`.
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
    credits: list[Credit] = Field(
        min_length=1,
        json_schema_extra=NONE_TWICE | _opens_with(["image"]),
        description="whose error is a token's reward: the image's, as in the paper, or what is near the token",
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
        description="CPU threads of a cell, 0: all; another number is another random draw",
    )
    processes: Annotated[int, Field(ge=1)] = Field(
        1,
        description="of a cell, which with more than 1 sees all GPUs; for models that need several, with parallelism 1",
    )
    on_workers: bool = Field(
        False, description="cells run on all workers of the pool `cells`, on any machine; otherwise here"
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
