"""Where the official numbers lie: `../shared/reference` beside the checkout, or wherever VAPI_REFERENCE points."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

REFERENCE = Path(os.environ.get("VAPI_REFERENCE", Path(__file__).parents[2] / "shared" / "reference"))

needs_reference = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason=f"no reference numbers at {REFERENCE}; set VAPI_REFERENCE to their folder"
)


def load_fixture(name: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The description (JSON) and the tensors of one fixture, e.g. "vapi/policy_step"."""
    description = json.loads((REFERENCE / f"{name}.json").read_text())
    return description, load_file(REFERENCE / f"{name}.safetensors")
