"""Our own model files: safetensors plus a JSON file that says what the weights are."""

import dataclasses
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from vapi_core.errors import FileError, quoted
from vapi_core.files import atomic_path, read_checked_json, sha256_file, write_checked_json
from vapi_core.models.families import FAMILIES
from vapi_core.models.llamagen.tokenizer import Tokenizer, TokenizerConfig
from vapi_core.models.weights import check_savable, load_strictly, read_state_dict

POLICIES = {family.policy.__name__: (family.policy, family.config) for family in FAMILIES.values()}
ARCHITECTURES: dict[str, tuple[type, type]] = {"Tokenizer": (Tokenizer, TokenizerConfig)} | POLICIES


def save_model(
    directory: Path | str, kind: str, model: nn.Module, state: dict[str, Tensor] | None = None, **facts: Any
) -> str:
    """Writes `KIND.safetensors` and `KIND.json` into `directory`; returns the sha256 of the weights.

    Args:
        kind: "tokenizer" or "generator".
        state: its state dict, where the model itself has only a part of the weights.
        facts: what else the JSON should say, e.g. the sha256 of the tokens the model was trained on.

    Raises:
        FileError: a weight is not finite; nothing is written.
    """
    directory = Path(directory)
    weights = directory / f"{kind}.safetensors"
    state = model.state_dict() if state is None else state
    check_savable(state, weights)
    with atomic_path(weights) as temporary:
        save_file({name: t.detach().cpu().contiguous() for name, t in state.items()}, temporary)
    sha256 = sha256_file(weights)
    config = dataclasses.asdict(model.config)  # type: ignore[call-overload]
    description = {"kind": kind, "architecture": type(model).__name__, "config": config, "sha256": sha256}
    write_checked_json(directory / f"{kind}.json", description | facts)
    return sha256


def load_model(directory: Path | str, kind: str, remedy: str = "") -> Any:
    """Loads what `save_model` wrote, in eval mode; returns the Tokenizer or the policy.

    Raises:
        FileError: a file is missing or damaged, or the weights are not those that the JSON describes.
    """
    directory = Path(directory)
    description = _read_description(directory / f"{kind}.json", remedy)
    weights = directory / f"{kind}.safetensors"
    if not weights.is_file():
        raise FileError(weights, "the file is missing.", remedy)
    if sha256_file(weights) != description["sha256"]:
        raise FileError(weights, f"the weights are not those that {kind}.json describes.", remedy)
    name = description.get("architecture", kind.capitalize())  # files of the first version do not say
    if name not in ARCHITECTURES:
        raise FileError(directory / f"{kind}.json", f"there is no architecture {quoted(name)}.", remedy)
    model_class, config_class = ARCHITECTURES[name]
    fields = {name: tuple(v) if isinstance(v, list) else v for name, v in description["config"].items()}
    try:
        config = config_class(**fields)
    except TypeError as error:  # written by another version of this class
        raise FileError(directory / f"{kind}.json", f"no configuration of a {kind} ({error}).", remedy) from None
    model = model_class(config)
    load_strictly(model, read_state_dict(weights, remedy), weights, remedy)
    return model.eval()


def model_hash(directory: Path | str, kind: str, remedy: str = "") -> str:
    """Sha256 of a saved model's weights, from its JSON.

    Raises:
        FileError: the JSON is missing or damaged.
    """
    return _read_description(Path(directory) / f"{kind}.json", remedy)["sha256"]


def _read_description(path: Path, remedy: str) -> dict[str, Any]:
    description = read_checked_json(path, remedy)
    if not isinstance(description, dict) or not {"config", "sha256"} <= description.keys():
        raise FileError(path, "the file does not describe a model.", remedy)
    return description
