"""What a user is told where memory ends: which parameters lower a stage's need, and what they ask for now.

The kernel and CUDA name a number of bytes and no parameter. Here stands, for every stage, what its need depends on and
is not at its lowest: first what changes rounding only, which is another draw of the same result, then what changes it.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from pipelines.config.params import Params
from pipelines.config.variant import Alignment, find_variant, key_of
from vapi_core.errors import VapiError
from vapi_core.training.loop import OptimizationConfig


@dataclass(frozen=True)
class Lever:
    """A parameter that lowers the need for memory."""

    name: str
    now: Any
    lower: str  # the value to try
    same_result: bool = True  # up to another draw

    def __str__(self) -> str:
        return f"{self.name}: {self.lower} (now {self.now if isinstance(self.now, str) else json.dumps(self.now)})"


def memory_advice(params: Params, stage_name: str) -> str:
    """Sentences that say which parameters lower a stage's need for memory, each with its number now.

    Args:
        stage_name: as in dvc.yaml, e.g. "tokenizer", "align@va-pi" or "sample@va-pi".
    """
    levers = memory_levers(params, stage_name)
    same = [str(lever) for lever in levers if lever.same_result]
    other = [str(lever) for lever in levers if not lever.same_result]
    parts = []
    if same:
        parts.append(f"These lower the need and change rounding only, which is another draw: {', '.join(same)}.")
    if other:
        parts.append(f"These lower the need and change the result: {', '.join(other)}.")
    return " ".join(parts) or "No parameter bears on the need of this stage: it takes a machine with more memory."


def memory_levers(params: Params, stage_name: str) -> list[Lever]:
    """What can be lowered for a stage; a parameter at its lowest is not among them."""
    stage, _, instance = stage_name.partition("@")
    if stage in ("subset", "tokenize"):
        return _of_images(params) + (_of_captions(params) if stage == "tokenize" else [])
    if stage == "classifier":
        options = getattr(params.classifiers, instance, None)
        return [] if options is None else _less(f"classifiers.{instance}.batch_size", options.batch_size, False)
    if stage in ("tokenizer", "generator"):
        training = getattr(params, stage).training
        return [] if training is None else _of_batch(f"{stage}.training", training, processes=1)
    if stage == "align":
        alignment = find_variant(params, instance).alignment
        return [] if alignment is None else _by_own_key(_of_alignment(params, alignment), params, instance)
    if stage.startswith("sample"):
        return _of_sampling(params) + _of_processes(params)
    if stage in ("references", "score", "score-control"):
        return _of_scores(params)
    return []


def _of_alignment(params: Params, alignment: Alignment) -> list[Lever]:
    launch, method, config = params.launch, alignment.method, alignment.config
    levers = _of_batch("align", alignment.optimization, launch.world_size)
    if getattr(config, "log_kl_every", 0) > 0 and config.regularizer != "kl":  # else the base is held anyway
        levers.append(Lever("align.log_kl_every", config.log_kl_every, "0"))
    if method.trains == "generator" and not launch.activation_checkpointing:
        levers.append(Lever("launch.activation_checkpointing", False, "true"))
    levers += _of_dtype(params) + _of_compilation(params)
    if method.shards and method.trains == "generator" and params.device != "cpu" and launch.strategy == "ddp":
        levers.append(Lever("launch.strategy", "ddp", "fsdp, on several GPUs"))
    if launch.processes > 1:
        levers += _of_processes(params)
    if group_size := getattr(config, "group_size", 0):
        levers += _less("align.group_size", group_size, False, least=2)
    return levers


def _by_own_key(levers: list[Lever], params: Params, variant: str) -> list[Lever]:
    """Levers of an alignment, named where their value stands: in the variant, or in what all share."""
    changes, prefix = params.variants[variant].align, "align."
    return [
        replace(lever, name=key_of(variant, lever.name.removeprefix(prefix), changes))
        if lever.name.startswith(prefix)
        else lever
        for lever in levers
    ]


def _of_batch(section: str, training: OptimizationConfig, processes: int) -> list[Lever]:
    """The size of a micro-batch; not set, it is all that a process has of a step."""
    share = training.batch_size // processes
    size = training.micro_batch_size or share
    if size == 1:
        return []
    now = size if training.micro_batch_size else f"null, which is {share}"
    return [Lever(f"{section}.micro_batch_size", now, str(_half_divisor(size)))]


def _half_divisor(size: int) -> int:
    """The largest divisor up to the half, so that it divides a batch that `size` divides."""
    return next(part for part in range(size // 2, 0, -1) if size % part == 0)


def _of_sampling(params: Params) -> list[Lever]:
    size = params.sample.batch_size
    levers = [Lever("sample.batch_size", None, "1, or as many as fit")] if size is None else []
    levers += [] if size is None else _less("sample.batch_size", size, True)
    return levers + _of_dtype(params) + _of_compilation(params)


def _of_scores(params: Params) -> list[Lever]:
    levers = _less("score.batch_size", params.score.batch_size, True)
    if params.device != "cuda" and params.threads != 1:  # each thread has a batch of its own
        levers.append(Lever("threads", params.threads, "1, where the device is a CPU"))
    if "efficientnet-lite0" in params.score.extractors:
        levers += _less("score.input_size", params.score.input_size, False, least=32)
    return levers


def _of_dtype(params: Params) -> list[Lever]:
    return [] if params.launch.dtype == "bfloat16" else [Lever("launch.dtype", "float32", "bfloat16", False)]


def _of_compilation(params: Params) -> list[Lever]:
    return [Lever("launch.compile", True, "false")] if params.launch.compile else []


def _of_processes(params: Params) -> list[Lever]:
    if params.device == "cuda" or params.launch.processes == 1:
        return []
    return [Lever("launch.processes", params.launch.processes, "1, where they share a CPU's memory")]


def _of_captions(params: Params) -> list[Lever]:
    if params.captions is None or params.captions.encoder == "janus" or params.captions.dtype == "float16":
        return []
    return [Lever("captions.dtype", params.captions.dtype, "float16", False)]


def _of_images(params: Params) -> list[Lever]:
    return [Lever(f"subset.splits.{name}", count, "fewer", False) for name, count in params.subset.splits.items()]


def _less(name: str, now: int, same_result: bool, least: int = 1) -> list[Lever]:
    return [Lever(name, now, str(max(least, now // 2)), same_result)] if now > least else []


# Errors


@contextmanager
def memory_explained(params: Params, stage_name: str) -> Iterator[None]:
    """Turns an error of memory that the block ends with into one message with the advice for a stage."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        asked = asked_for(error)
        if asked is None:
            raise
        raise VapiError(f"{stage_name}: out of memory ({asked}). {memory_advice(params, stage_name)}") from None


def asked_for(error: BaseException) -> str | None:
    """What an error of memory says was asked for; None if it is about something else.

    torch has a class for a GPU's alone; what it raises for main memory is known by its words.
    """
    from torch import OutOfMemoryError  # late: who only asks for advice needs no torch

    text = str(error).strip()
    if isinstance(error, MemoryError):
        return text.splitlines()[0].rstrip(".") if text else "a Python object did not fit"  # numpy says how much
    if found := re.search(r"DefaultCPUAllocator: .*?tried to allocate (\d+) bytes", text, re.DOTALL):
        return f"{int(found[1]) / 2**30:.3g} GiB more were asked for on the CPU"
    if isinstance(error, OutOfMemoryError):
        found = re.search(r"Tried to allocate ([\d.]+ \w+)", text)
        return f"{found[1]} more were asked for on the GPU" if found else text.splitlines()[0].rstrip(".")
    return None
