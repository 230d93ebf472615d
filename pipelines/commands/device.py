"""The device that a command is told to use."""

import torch

from vapi_core.errors import ParameterError, quoted


def choose_device(name: str) -> str:
    """The device to use. Raises ParameterError where there is no such device."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ParameterError("--device", f"it is {name}, but torch sees no GPU here; choose auto or cpu.")
    try:
        return str(torch.device(name))
    except RuntimeError:
        raise ParameterError("--device", f"torch knows no device {quoted(name)}.") from None
