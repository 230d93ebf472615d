"""How much memory a stage needs at its fullest moment, computed and not allocated: the stage's own code on fake
tensors.

An alignment is a step that is not the first: weights, moments and the frozen networks are there, and gradients where a
step has several backward passes. Of a micro-batch's parts the first two run, since all are alike; of the tokens that
AR-GRPO or a sampler draws, the last, when the KV cache is longest. Of the policy's layers a few run: every phase of a
stage grows by the same with each, which a test compares with all of them. Assumed is what `models` assumes. Not counted
are the CUDA context, what libraries allocate inside an operation, what an allocator cannot use between its blocks, what
`launch.compile` saves, and the packed weights with which a CPU draws few images.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from pipelines.config.params import Params
from pipelines.config.variant import Alignment, find_variant
from pipelines.estimates import models
from pipelines.estimates.live_bytes import LiveBytes
from vapi_core.alignment.ar_grpo import ArGrpo
from vapi_core.alignment.method import Setting
from vapi_core.alignment.va_pi import VaPiConfig
from vapi_core.data.images import images_of_a_pass
from vapi_core.memory import CPU_PART_BYTES, GPU_PARTS
from vapi_core.models.janus.policy import Janus
from vapi_core.models.policy import Condition, Policy
from vapi_core.sampling.sampler import batch_in_memory, filtered_probabilities, guide, invert_cdf
from vapi_core.training.loop import MicroBatch, Objective, adamw, autocast, parts_of

CUDA_RESERVE = 10**9  # what a GPU's context and libraries take beside tensors; allowed for, not measured
TEXT_TOWERS = {"clip_score": 123_650_304, "hpsv2": 354_032_640}  # parameters of CLIP models that `models` leaves out
FEW = (2, 3)  # layers

Phases = dict[str, dict[str, int]]  # bytes at the fullest moment of each phase, by what holds them


@dataclass(frozen=True)
class Peak:
    """Bytes at the fullest moment, by what holds them."""

    parts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def is_computable(params: Params, variant: str) -> bool:
    """Whether fake tensors can tell the peak of an alignment. Not of a Janus by VA-π: there they crash torch 2.15 at
    times, by a damaged heap. Why is not known."""
    alignment = find_variant(params, variant).alignment
    return params.generator.family != "janus" or alignment is None or not isinstance(alignment.config, VaPiConfig)


def align_peak(params: Params, variant: str, memory: int | None) -> Peak:
    """The peak of one process of an alignment.

    Args:
        variant: its name in params.yaml.
        memory: bytes of the GPU; None: the stage runs on a CPU.
    """
    assert is_computable(params, variant)
    alignment = find_variant(params, variant).alignment
    assert alignment is not None
    dtype = getattr(torch, params.launch.dtype)

    def phases(layers: int) -> Phases:
        with _fake(gpu=memory is not None):
            trained, objective, frozen = _open(params, alignment, layers, _part_bytes(memory), dtype)
            return _step(trained, objective, frozen, params, alignment, dtype)

    return fullest(phases, params.generator.layers, FEW)


def sample_peak(params: Params, variant: str, memory: int | None) -> Peak:
    """The peak of one process that draws a variant's image sets; arguments as above.

    Without `sample.batch_size` as many images are drawn at once as `memory` allows, which then must be given.
    """
    guided = any(sampling.guidance_scale != 1.0 for sampling in find_variant(params, variant).samplings)
    count = params.sample.batch_size or _batch(params, guided, memory)

    def phases(layers: int) -> Phases:
        with _fake(gpu=memory is not None), torch.no_grad():
            return _sampling(params, layers, guided, count)

    return fullest(phases, params.generator.layers, FEW)


def fullest(phases: Callable[[int], Phases], layers: int, few: tuple[int, int]) -> Peak:
    """The fullest moment of any phase with so many layers, from those with two smaller numbers of them."""
    if layers <= few[1]:
        return max((Peak(parts) for parts in phases(layers).values()), key=lambda peak: peak.total)
    (less, more), (a, b) = few, map(phases, few)

    def grown(phase: str) -> Peak:
        labels = {**a[phase], **b[phase]}
        x, y = ({label: run[phase].get(label, 0) for label in labels} for run in (a, b))
        return Peak({label: y[label] + (y[label] - x[label]) * (layers - more) // (more - less) for label in labels})

    return max(map(grown, b), key=lambda peak: peak.total)


def _policy(params: Params, layers: int) -> Policy:
    """The generator with so few layers, which plans its parts as the whole does."""
    policy = models.open_policy(params, layers)
    policy.activation_checkpointing = params.launch.activation_checkpointing
    if isinstance(policy, Janus):
        policy.language_model.config.num_hidden_layers = params.generator.layers
    else:
        policy.config = replace(policy.config, layers=params.generator.layers)  # type: ignore[type-var]
    return policy.eval()


def _batch(params: Params, guided: bool, memory: int | None) -> int:
    """How many images a sampler draws at once."""
    assert memory is not None
    with _fake(gpu=True):
        policy = models.open_policy(params).to(getattr(torch, params.launch.dtype))
        tokenizer = models.open_tokenizer(params)
        weights = sum(tensor.nbytes for tensor in _tensors(policy) + _tensors(tokenizer))
        return batch_in_memory(memory - weights, policy, tokenizer, guided)


def _sampling(params: Params, layers: int, guided: bool, count: int) -> Phases:
    policy = _policy(params, layers).to(getattr(torch, params.launch.dtype))
    tokenizer = models.open_tokenizer(params).eval()
    held = LiveBytes()
    held.hold("weights", _tensors(policy))
    held.hold("frozen networks", _tensors(tokenizer))
    with held:
        cache = _draw_last(held, policy, models.conditions(params, count), params, guided)
        held.begin("decoding")
        tokens = torch.zeros(count, policy.config.length, dtype=torch.long)
        for part in tokens.split(images_of_a_pass(params.subset.image_size))[:2]:
            tokenizer.decode(part)
        del cache  # a sampler keeps it for its next batch
    return held.peaks


def _part_bytes(memory: int | None) -> int:
    return CPU_PART_BYTES if memory is None else memory // GPU_PARTS


@contextmanager
def _fake(gpu: bool) -> Iterator[None]:
    """Fake tensors, whose modules may be cast; on a GPU with the one rule of its autocast that a CPU's lacks."""
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        patch.object(nn.Module, "_apply", _replace),
        _WideNorms() if gpu else nullcontext(),
    ):
        yield


def _replace(module: nn.Module, fn: Any, recurse: bool = True) -> nn.Module:
    """`nn.Module._apply` with new parameters in the place of old ones, whose content fake tensors cannot swap."""
    for child in module.children():
        child._apply(fn)
    for tensors in (module._parameters, module._buffers):
        for name, old in tensors.items():
            if old is not None and (new := fn(old.detach())).dtype != old.dtype:
                tensors[name] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
    return module


class _WideNorms(TorchFunctionMode):
    """Group norms in float32 under autocast. Tensors of CUDA themselves can go no way back without CUDA."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.group_norm and torch.is_autocast_enabled("cpu"):
            x, groups, *rest = args
            rest = [value.float() if isinstance(value, Tensor) else value for value in rest]
            return func(x.float(), groups, *rest, **kwargs)
        return func(*args, **kwargs)


# Alignments


def _open(
    params: Params, alignment: Alignment, layers: int, part_bytes: int, dtype: torch.dtype
) -> tuple[nn.Module, Objective, list[nn.Module]]:
    """What is trained, its objective, and the frozen networks beside."""
    config, needs = alignment.config, alignment.method.needs(alignment.config)
    network: nn.Module = models.ARCHITECTURES["reward"](models.DIGITS)
    if "lpips" in needs:
        network, config = models.Vgg(), replace(config, reward_network="reward-classifier", reward_first_stage=0)
    if judges := [name for name in models.CLIP_TOWERS if name in needs]:
        rewards = replace(config.rewards, class_likelihood=1.0, clip_score=0.0, hpsv2=0.0)
        network, config = models.Judges(judges), replace(config, rewards=rewards)
    policy, tokenizer = _policy(params, layers), models.open_tokenizer(params).requires_grad_(False)
    lent = _Networks(params, layers, network.eval().requires_grad_(False))
    data = models.training_data(params)
    setting = Setting(policy, tokenizer, data, lent, alignment.optimization, 0, dtype, part_bytes)
    objective = alignment.method.open(config, setting)
    if isinstance(objective, ArGrpo):
        objective.__class__ = _LastTokens
    parts: dict[str, nn.Module] = {"generator": policy, "tokenizer": tokenizer}
    trained = parts.pop(alignment.method.trains)
    return trained, objective, [*parts.values(), network, *lent.lent, *_copies(objective)]


class _Networks(models.FakeNetworks):
    """Remembers the bases that it lends."""

    def __init__(self, params: Params, layers: int, network: nn.Module):
        super().__init__(params, layers, network)
        self.lent: list[nn.Module]
        object.__setattr__(self, "lent", [])

    def base(self) -> Policy:
        assert self.layers is not None
        self.lent.append(policy := _policy(self.params, self.layers).requires_grad_(False))
        return policy

    def reward_classifier(self) -> nn.Module:
        return self.network


def _copies(objective: Objective) -> list[nn.Module]:
    """Decoder and perceptual network in the reward's own type."""
    reward = getattr(objective, "reward", None)
    return [part for part in (getattr(reward, name, None) for name in ("decoder", "perceptual")) if part is not None]


class _LastTokens(ArGrpo):
    """Draws the last token of its rollouts alone, and rewards two parts of them."""

    held: LiveBytes
    params: Params

    def _draw(self, condition: Condition, uniforms: Tensor) -> Tensor:
        with torch.no_grad():
            guided = self.config.guidance_scale != 1.0
            _draw_last(self.held, self.generator, condition, self.params, guided)
        return torch.zeros(uniforms.shape, dtype=torch.long)

    def _reward(self, rollouts: Tensor, items: np.ndarray) -> dict[str, Tensor]:
        some = slice(2 * self._images_at_a_time())
        values = super()._reward(rollouts[some], items[some])
        return {name: value.new_zeros(len(rollouts)) for name, value in values.items()}


def _step(
    trained: nn.Module,
    objective: Objective,
    frozen: list[nn.Module],
    params: Params,
    alignment: Alignment,
    dtype: torch.dtype,
) -> Phases:
    """A step that is not the first."""
    own, held = alignment.optimization, LiveBytes()
    if isinstance(objective, _LastTokens):
        objective.held, objective.params = held, params
    share = own.batch_size // params.launch.world_size
    size = min(own.micro_batch_size or share, share)
    weights = [p for p in trained.parameters() if p.requires_grad]
    held.hold("weights", _tensors(trained))
    held.hold("frozen networks", [tensor for network in frozen for tensor in _tensors(network)])
    needs = alignment.method.needs(alignment.config)
    held.hold("frozen networks", [torch.empty(count) for name, count in TEXT_TOWERS.items() if name in needs])
    optimizer = adamw(trained.named_parameters(), own)
    for parameter in weights:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    held.hold("moments", (t for state in optimizer.state.values() for t in state.values()))
    whole = autocast(objective, models.CPU, dtype)
    with held:
        held.begin("rollouts and rewards")
        parts = parts_of(whole, MicroBatch(0, 0, np.arange(size)))
        if several := len(parts) > 1 or size < share:
            held.hold("gradients", (p.grad for p in weights if p.grad is not None))
        else:
            optimizer.zero_grad(set_to_none=True)
        for part in parts[:2]:
            held.begin("loss")
            loss, _ = part.loss()
            held.begin("backward")
            loss.backward()
            del loss
        if not several:
            held.hold("gradients", (p.grad for p in weights if p.grad is not None))
        held.begin("optimizer")
        nn.utils.clip_grad_norm_(weights, own.gradient_norm)
        optimizer.step()
    return held.peaks


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


# Decoding


def _draw_last(held: LiveBytes, policy: Policy, condition: Condition, params: Params, guided: bool) -> Any:
    """The last token of the sequences of these conditions; returns the KV cache, which has all before it."""
    count, length = len(condition), policy.config.length
    if guided:
        condition = policy.append_null(condition)
    with held.labelled("KV cache"):
        cache = policy.new_cache(len(condition))
    policy.prefill(condition, cache)
    if isinstance(policy, Janus):
        with held.labelled("KV cache"):
            _fill(cache.past, length - 2)
    previous = torch.zeros(len(condition), dtype=torch.long)
    logits = policy.decode_step(previous, length - 1, cache)
    scale = params.sample.guidance_scales[-1] if guided else 1.0
    scaled = guide(logits, 1.5 if guided and scale == 1.0 else scale, count)
    s = params.sample
    invert_cdf(filtered_probabilities(scaled, s.temperature, s.top_k, s.top_p), torch.zeros(count, 1))
    return cache


def _fill(past: Any, tokens: int) -> None:
    """As if so many tokens had been decoded; a layer's keys and values grow by being copied."""
    for layer, cached in enumerate(past.layers):
        more = cached.keys.new_zeros(*cached.keys.shape[:2], tokens, cached.keys.shape[3])
        past.update(more, more.clone(), layer)
