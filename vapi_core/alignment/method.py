"""What an alignment method is to the rest: its hyper-parameters, what it trains, which networks it needs, how it is
opened.

Each method is one module with its objective and one `Method`; `methods.METHODS` lists them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import nn

from vapi_core.data.batches import AlignmentData
from vapi_core.models.llamagen.tokenizer import Tokenizer
from vapi_core.models.policy import Policy
from vapi_core.training.loop import Objective, OptimizationConfig

Trained = Literal["generator", "tokenizer"]
Need = Literal["reward-classifier", "lpips", "clip_score", "hpsv2", "class-labels"]
Problems = Iterator[tuple[str, str]]  # a hyper-parameter's name, and what is wrong with it


class Networks(Protocol):
    """What the caller lends a method beside the two models: frozen networks, and what the data set is made of."""

    def base(self) -> Policy:
        """The generator before any alignment, frozen; a copy of its own."""
        ...

    def reward_classifier(self) -> nn.Module:
        """The classifier that rewards: images [N, 3, H, W] to feature maps and logits [N, K]."""
        ...

    def class_labels(self) -> Any:
        """Class ids int64 [N] of the data set's items."""
        ...

    def prompts(self, template: str) -> list[str]:
        """A prompt of every item: its caption, or `template` with its class's name in place of {class}."""
        ...


@dataclass(frozen=True)
class Setting:
    """What an objective is opened with."""

    generator: Policy
    tokenizer: Tokenizer  # frozen
    data: AlignmentData
    networks: Networks
    optimization: OptimizationConfig
    seed: int
    dtype: torch.dtype  # of autocast
    part_bytes: int | None = None  # what a part of a step may hold; None: as `vapi_core.memory` has it for the device

    @property
    def device(self) -> torch.device:
        return self.data.device


def no_problems(config: Any) -> Problems:
    """For methods whose every typed configuration can work."""
    yield from ()


@dataclass(frozen=True)
class Method:
    """One way to align a generator. `config` is a dataclass whose fields are keys of `align` in params.yaml."""

    config: type[Any]
    open: Callable[[Any, Setting], Objective]
    needs: Callable[[Any], frozenset[Need]]
    trains: Trained = "generator"
    problems: Callable[[Any], Problems] = no_problems
    shards: bool = True  # whether the generator may be spread over processes while it is trained (FSDP)
