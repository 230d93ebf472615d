"""How the tokenizer and the base generator come to be, where no official checkpoint is imported.

Both are objectives for `vapi_core.training.loop.train`. The tokenizer minimises MSE, L1 and the quantizer's losses.
Departures from LlamaGen's: no discriminator and no LPIPS; L1 does for digits what these do for photographs, it keeps
flat areas flat. The squared error of the color alone may weigh more: on a black canvas it is a small part of all, and a
short training comes to the shapes only. And the codebook starts at the k-means centres of the outputs of an encoder
that was trained for some steps without quantization, not at random: a short training otherwise leaves most of it
unused. An empty canvas that fills most of all images has one of the centres. The generator minimises next-token
cross-entropy with LlamaGen's dropouts.
"""

import math

import numpy as np
import torch
from torch import Tensor

from vapi_core.data.batches import AlignmentData
from vapi_core.data.images import to_tensor
from vapi_core.errors import ParameterError, TrainingError
from vapi_core.models.llamagen.tokenizer import Tokenizer
from vapi_core.models.logits import next_token_loss
from vapi_core.models.policy import Policy
from vapi_core.randomness import stream
from vapi_core.training.loop import MicroBatch

FREQUENT = 2 / 3  # share of all patches from which on equal ones have one k-means centre, not one of many
LOGITS_OF_A_PASS = 2**28  # 1 GB in float32


class TokenizerObjective:
    """Reconstruction of images [N, H, W, 3] uint8.

    The first `unquantized_steps` train encoder and decoder alone; the next one starts with `start_codebook`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        images: np.ndarray,
        device: torch.device,
        l1_weight: float = 0.0,
        unquantized_steps: int = 0,
        seed: int = 0,
        color_weight: float = 0.0,
    ):
        self.tokenizer, self.images, self.device = tokenizer.train(), images, device
        self.l1_weight, self.unquantized_steps, self.seed = l1_weight, unquantized_steps, seed
        self.color_weight = color_weight
        self._codebook_pending = unquantized_steps > 0

    def __call__(self, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        images = to_tensor(self.images[batch.items], self.device)
        quantized = None
        if batch.step < self.unquantized_steps:
            reconstruction = self.tokenizer.reconstruct_unquantized(images)
        else:
            if batch.step == self.unquantized_steps and self._codebook_pending:
                try:
                    start_codebook(self.tokenizer, self.images, self.device, self.seed)
                except FloatingPointError:
                    raise TrainingError(batch.step + 1, "an encoder output", math.nan) from None
                self._codebook_pending = False
            reconstruction, quantized = self.tokenizer(images)
        difference = reconstruction - images
        mse, l1 = difference.square().mean(), difference.abs().mean()
        loss, commitment = mse + self.l1_weight * l1, torch.zeros(())
        metrics = {"mse": mse.detach(), "l1": l1.detach()}
        if self.color_weight:
            color = color_error(difference)
            loss = loss + self.color_weight * color
            metrics["color"] = color.detach()
        if quantized is not None:
            loss = loss + quantized.codebook_loss + quantized.commitment_loss + quantized.entropy_loss
            commitment = quantized.commitment_loss.detach()
        return loss, metrics | {"commitment": commitment}


def color_error(difference: Tensor) -> Tensor:
    """The part of a mean squared error that is not of the brightness, of differences [N, 3, H, W] of images."""
    return (difference - difference.mean(1, keepdim=True)).square().mean()


@torch.no_grad()
def start_codebook(tokenizer: Tokenizer, images: np.ndarray, device: torch.device, seed: int) -> None:
    """Puts the codebook of a tokenizer at the k-means centres of its encoder outputs of images [N, H, W, 3] uint8.

    About 64 outputs an entry take part. Where most patches of the images are the same, one centre is the mean of its
    outputs and the others are those of the rest: an encoder without codebook makes such patches as varied as all
    others.

    Raises:
        ParameterError: there are fewer encoder outputs than codebook entries; those of equal frequent patches count as
            one.
        FloatingPointError: an encoder output is not finite.
    """
    draws = stream(seed, "codebook start", 0)
    rows_per_image = (images.shape[1] // tokenizer.config.downsample) * (images.shape[2] // tokenizer.config.downsample)
    count = min(len(images), -(-64 * tokenizer.config.codebook_size // rows_per_image))
    chosen = images[np.sort(draws.permutation(len(images))[:count])]
    outputs = [tokenizer.embed(to_tensor(chosen[i : i + 256], device)) for i in range(0, count, 256)]
    rows = tokenizer.quantize.rows(torch.cat(outputs)).double().cpu().numpy()  # [N, D]
    if not np.isfinite(rows).all():
        raise FloatingPointError("an encoder output is not finite")
    same = most_frequent(patches(chosen, tokenizer.config.downsample))
    if (different := len(rows) - max(0, int(same.sum()) - 1)) < tokenizer.config.codebook_size:
        raise ParameterError(
            "tokenizer.codebook_size", f"{different} different encoder outputs cannot start that many codes"
        )
    centres = centres_apart(rows, same, tokenizer.config.codebook_size, draws)
    tokenizer.quantize.embedding.weight.copy_(torch.from_numpy(centres))


def patches(images: np.ndarray, side: int) -> np.ndarray:
    """Patches uint8 [N * T, side * side * 3] of images [N, H, W, 3], row by row as tokens are."""
    n, height, width, _ = images.shape
    grid = images.reshape(n, height // side, side, width // side, side, 3)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(-1, side * side * 3)


def most_frequent(rows: np.ndarray) -> np.ndarray:
    """Which of the rows are equal to the most frequent one, bool [N]; none where they are not FREQUENT."""
    _, kind, counts = np.unique(rows, axis=0, return_inverse=True, return_counts=True)
    return (kind.reshape(-1) == counts.argmax()) & (counts.max() > FREQUENT * len(rows))


def centres_apart(rows: np.ndarray, same: np.ndarray, count: int, draws: np.random.Generator) -> np.ndarray:
    """`count` k-means centres of rows [N, D], one of which belongs to the rows that are `same`, if any are."""
    from scipy.cluster.vq import kmeans2

    if count == 1 or not same.any():
        return kmeans2(rows, count, minit="points", rng=draws)[0]
    others, _ = kmeans2(rows[~same], count - 1, minit="points", rng=draws)
    return np.concatenate([rows[same].mean(0, keepdims=True), others])


class GeneratorObjective:
    """Next-token prediction with dropout, the condition dropped now and then so that guidance has a null condition."""

    def __init__(self, generator: Policy, data: AlignmentData):
        self.generator, self.data = generator.train(), data

    def __call__(self, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        tokens, condition = self.data.batch(batch.items)
        return next_token_loss(self.generator(condition, tokens[:, :-1]), tokens), {}


@torch.no_grad()
def held_out_cross_entropy(generator: Policy, data: AlignmentData) -> float:
    """Mean next-token cross-entropy, nats a token, of a generator in eval mode."""
    generator.eval()
    logits = generator.config.length * generator.config.codebook_size  # of an image: 9 million for 24 x 24 of 16384
    batch_size = max(1, min(256, LOGITS_OF_A_PASS // logits))
    total = 0.0
    for start in range(0, len(data), batch_size):
        tokens, condition = data.batch(np.arange(start, min(start + batch_size, len(data))))
        total += float(next_token_loss(generator(condition, tokens[:, :-1]), tokens)) * len(tokens)
    return total / len(data)


def codebook_use(tokens: np.ndarray, codebook_size: int) -> tuple[float, float]:
    """Share of the codebook that occurs in `tokens`, and the perplexity of its use."""
    counts = np.bincount(tokens.ravel(), minlength=codebook_size)
    p = counts[counts > 0] / counts.sum()
    return float((counts > 0).mean()), float(np.exp(-(p * np.log(p)).sum()))
