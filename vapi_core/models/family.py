"""What a family of generators is to the rest: what it is conditioned on, how its checkpoints and its captions are read.

Each family is one folder with its policy and one `Family`; `families.FAMILIES` lists them. Class ids are conditions as
they are. Texts are read once, all that a run has, into a folder, from which conditions are taken from then on.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import torch

from vapi_core.errors import ParameterError
from vapi_core.limits import Bounds, Checked
from vapi_core.models.policy import Condition, Conditions, Policy

Origin = dict[str, str]  # where an imported model comes from, for the JSON beside its weights
Encode = Callable[[Sequence[str]], Condition]


@dataclass(frozen=True, kw_only=True)
class CaptionConfig(Checked):
    """How texts are read. Without a checkpoint an encoder comes from its usual place."""

    encoder: str  # one of the family's
    checkpoint: str | None = None
    tokens: Annotated[int, Bounds(least=1, most=2**16)]  # of a caption or prompt, at most
    truncate: bool = False  # whether longer ones are cut off
    standardize: bool = False
    dtype: Literal["float16", "float32"] = "float16"  # of stored text features


class WriteTexts(Protocol):
    def __call__(
        self,
        directory: Path,
        texts: Sequence[str],
        trained: Sequence[str],
        config: CaptionConfig,
        device: torch.device,
        advance: Callable[[int], object],
    ) -> dict[str, float]:
        """Writes what conditions are made of; equal texts are read once. Returns metrics.

        Args:
            trained: the texts of the training split, by which features are standardized.
            advance: is told how many different texts were read since the last call.

        Raises:
            LongCaptionError: texts are too long and may not be cut off; names them.
            FileError: no encoder can be loaded.
        """
        ...


class OpenConditions(Protocol):
    def __call__(self, directory: Path, texts: Sequence[str], remedy: str) -> Conditions:
        """These texts as conditions, from what `write_texts` wrote. `remedy` says how to write it anew.

        Raises:
            FileError: a file is missing or damaged, or lacks a text.
        """
        ...


class OpenEncoder(Protocol):
    def __call__(
        self, directory: Path, texts: Sequence[str], config: CaptionConfig, device: torch.device, remedy: str
    ) -> Encode:
        """What turns these new texts into conditions, batch by batch, as the folder's own were.

        Raises:
            LongCaptionError: some are too long and may not be cut off; names them.
            FileError: a file is missing or damaged.
        """
        ...


@dataclass(frozen=True)
class Family:
    """One architecture of generators with its formats."""

    policy: type[Policy]  # is made from `config`
    config: type[Any]
    encoders: tuple[str, ...]  # values of captions.encoder that it reads
    classes: bool  # whether it can be conditioned on classes
    truncates: bool  # whether captions may be cut off
    trains: bool  # whether it can be trained from scratch; its `config` then is a GeneratorConfig
    # These two read a checkpoint, which must have the shape of a TokenizerConfig, or of a GeneratorConfig; the models
    # are a Tokenizer and the policy, in eval mode. FileError: there is none, it is damaged or, for LlamaGen's files, of
    # another shape. ParameterError: it is of another shape; names the key.
    import_tokenizer: Callable[[str, Any], tuple[Any, Origin]]
    import_generator: Callable[[str, Any], tuple[Policy, Origin]]
    write_texts: WriteTexts
    open_conditions: OpenConditions
    open_encoder: OpenEncoder
    # fields of a GeneratorConfig that follow from the texts' folder, given with the remedy if it is missing
    caption_shape: Callable[[Path, str], dict[str, int]]


def check_shape(checkpoint: str, section: str, found: Mapping[str, Any], given: Any) -> None:
    """Raises ParameterError at the first of the values found in a checkpoint that `given` has otherwise."""
    for name, value in found.items():
        if getattr(given, name) != value:
            raise ParameterError(f"{section}.{name}", f"{checkpoint} has {value}, not {getattr(given, name)}.")
