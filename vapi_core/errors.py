"""Errors that are meant for the user: each names a parameter or a file and says what to do about it."""

from pathlib import Path


class VapiError(Exception):
    """Base of every error whose message is all a user needs; a stage prints it and exits with code 1."""


class ParameterError(VapiError):
    """A parameter has a value that cannot work. `name` is its dotted key in params.yaml, e.g. "align.noise_ratio"."""

    def __init__(self, name: str, problem: str):
        super().__init__(f"{name}: {problem}")
        self.name = name


class FileError(VapiError):
    """A file is missing, damaged, or made from something else than what it is used with."""

    def __init__(self, path: Path | str, problem: str, remedy: str = ""):
        super().__init__(f"{path}: {problem}" + (f" {remedy}" if remedy else ""))
        self.path = Path(path)


class TrainingError(VapiError):
    """A training has left the range of numbers. `step` counts from 1, as curves do; `metric` is what is not finite."""

    def __init__(self, step: int, metric: str, value: float):
        remedy = "Lower the learning rate, lengthen the warm-up, or train in float32."
        super().__init__(f"training stopped at step {step}: {metric} is {value}. {remedy}")
        self.step, self.metric, self.value = step, metric, value
