"""What the logits of a policy say of tokens: log-probabilities, cross-entropy, entropy. B images, T tokens, V codes.

The logits are the largest tensor of a training step, so nothing here makes a second one: what needs V columns goes
through some rows at a time (`row_chunks`), and `final_log_probabilities` writes the gradient of the logits over the
logits.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_ELEMENTS = 2**24  # of the rows of logits, 64 MB in float32, that have temporaries at a time


def row_chunks(logits: Tensor) -> Iterator[slice]:
    """Slices of the rows of logits [N, V], for work that needs temporaries of V columns."""
    rows = max(1, CHUNK_ELEMENTS // logits.shape[-1])
    yield from (slice(start, start + rows) for start in range(0, len(logits), rows))


def log_normalizer(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Log of the softmax's denominator, [B, T, 1]; shared by everything that needs log-probabilities of `logits`."""
    return (logits if temperature == 1.0 else logits / temperature).logsumexp(-1, keepdim=True)


def mean_entropy(logits: Tensor) -> Tensor:
    """Mean entropy, in nats, of next-token distributions [B, T, V]."""
    rows = logits.flatten(0, 1)
    total = logits.new_zeros((), dtype=torch.float64)
    for chunk in row_chunks(rows):
        normalizer = log_normalizer(rows[chunk])
        total += (normalizer[:, 0] - ((rows[chunk] - normalizer).exp() * rows[chunk]).sum(-1)).double().sum()
    return (total / len(rows)).to(logits.dtype)


def token_log_probabilities(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probabilities [B, G, T] of tokens [B, G, T] under logits [B, T, V], without a second tensor of V columns."""
    chosen = logits.gather(-1, tokens.transpose(1, 2)) / temperature  # [B, T, G]
    return (chosen - log_normalizer(logits, temperature)).transpose(1, 2)


def final_log_probabilities(logits: Tensor, tokens: Tensor) -> Tensor:
    """`token_log_probabilities` at temperature 1 as the last use of `logits` [B, T, V]: backward overwrites them.

    Values and gradients are those of the plain form. The backward needs no memory for the logits' gradient; a second
    one through the same graph fails, and so does that of another function that has kept the logits.
    """
    return _FinalLogProbabilities.apply(logits, tokens)


class _FinalLogProbabilities(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor) -> Tensor:
        rows = logits.flatten(0, 1)
        normalizer = torch.cat([log_normalizer(rows[chunk]) for chunk in row_chunks(rows)])  # [B * T, 1]
        normalizer = normalizer.unflatten(0, logits.shape[:2])
        ctx.save_for_backward(logits, tokens, normalizer)
        return (logits.gather(-1, tokens.transpose(1, 2)) - normalizer).transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Row (b, t): sum over rollouts of gradient * (one-hot of the token - softmax)."""
        logits, tokens, normalizer = ctx.saved_tensors
        weights = gradient.transpose(1, 2)  # [B, T, G]
        logits.sub_(normalizer).exp_().mul_(-weights.sum(-1, keepdim=True))
        return logits.scatter_add_(-1, tokens.transpose(1, 2), weights), None


def next_token_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Mean cross-entropy of logits [B, T, V] against tokens [B, T]; under noisy prefixes the paper's L_prior."""
    return -token_log_probabilities(logits, tokens[:, None]).mean()
