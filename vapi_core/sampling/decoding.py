"""The decode loop with all its state in tensors of fixed shape, so that one step can be compiled and replayed.

Position, guidance scales, uniform numbers and tokens drawn so far lie on the device; a step reads and writes them
there, and nothing comes back to the host before the sequences are whole. The KV cache is read up to one of a few
lengths, and what is not yet filled is masked, where `Policy.decode_step` reads exactly what is filled: results agree up
to rounding. On a GPU the compiled step of each length is captured as a CUDA graph.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from vapi_core.models.policy import Condition, Policy, fill_up

LENGTHS = 8  # at most so many compiled steps
GRANULARITY = 16  # tokens; attention kernels like multiples
WARM_UPS = 2  # runs of a step before its capture, in which libraries allocate what they need


def cache_lengths(length: int) -> list[int]:
    """How many of `length` cached image tokens steps read: a few numbers, the last of which is all."""
    width = -(-length // LENGTHS)
    width = -(-width // GRANULARITY) * GRANULARITY
    return [*range(width, length, width), length]


class StaticDecoder:
    """Draws the tokens of batches of one size; its KV cache, compiled steps and graphs serve batch after batch."""

    def __init__(
        self,
        policy: Policy,
        batch: int,
        scales: Iterable[float],
        draw: Callable[[Tensor, Tensor], Tensor],
    ):
        """
        Args:
            scales: guidance scale of each token; 1 is none.
            draw: logits [B, V] and uniforms [B] to tokens [B].
        """
        device, length = policy.device, policy.config.length
        self.policy, self.batch, self.draw = policy, batch, draw
        self.scales = torch.tensor(list(scales), device=device)  # [T]
        self.guided = bool((self.scales != 1).any())
        self.cache = policy.new_cache(2 * batch if self.guided else batch)
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        self.uniforms = torch.zeros(batch, length, device=device)
        self.tokens = torch.zeros(batch, length, dtype=torch.long, device=device)
        self.lengths = cache_lengths(length - 1)
        self._compiled = torch.compile(self._step, dynamic=False)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    @torch.no_grad()
    def __call__(self, condition: Condition, uniforms: Tensor) -> Tensor:
        """Tokens [N, T] of N conditions and uniforms [N, T]; where N is less than the batch, it is filled up."""
        count = len(condition)
        condition = fill_up(condition, self.batch)
        if self.guided:
            condition = self.policy.append_null(condition)
        self.uniforms[:count] = uniforms
        self.position.zero_()
        self._draw(self.policy.prefill(condition, self.cache))
        for position in range(1, self.tokens.shape[1]):
            self._run(position, next(n for n in self.lengths if n >= position))
        return self.tokens[:count].clone()

    def _draw(self, logits: Tensor) -> None:
        """Guides and draws the token at the position, then moves on. Logits [B, V], or [2B, V] with guidance."""
        if self.guided:
            conditional, unconditional = logits[: self.batch], logits[self.batch :]
            scale = self.scales.index_select(0, self.position)
            guided = unconditional + (conditional - unconditional) * scale
            logits = torch.where(scale == 1, conditional, guided)
        uniforms = self.uniforms.index_select(1, self.position)[:, 0]
        self.tokens.index_copy_(1, self.position, self.draw(logits, uniforms)[:, None])
        self.position += 1

    def _step(self, stop: int) -> None:
        previous = self.tokens.index_select(1, self.position - 1)[:, 0]
        previous = previous.clamp(
            max=self.policy.config.codebook_size - 1
        )  # of logits that are not finite comes no token
        previous = previous.repeat(2) if self.guided else previous
        self._draw(self.policy.decode_step_at(previous, self.position, stop, self.cache))

    def _run(self, position: int, stop: int) -> None:
        if self.tokens.device.type != "cuda":
            with torch._dynamo.config.patch(recompile_limit=1024):  # one for each length, batch size and generator
                self._compiled(stop)
            return
        if stop not in self._graphs:
            self._graphs[stop] = self._capture(position, stop)
        self._graphs[stop].replay()

    def _capture(self, position: int, stop: int) -> torch.cuda.CUDAGraph:
        """A step as a CUDA graph. A step run twice writes the same twice, if the position is put back between."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), torch._dynamo.config.patch(recompile_limit=1024):
            for _ in range(WARM_UPS):
                self._compiled(stop)
                self.position.fill_(position)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._compiled(stop)
        return graph
