"""How the base models come to be: a codebook that is used from its first step on."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.tiny import tiny_tokenizer
from vapi_core.errors import ParameterError, TrainingError
from vapi_core.images import to_tensor
from vapi_core.pretraining import (
    TokenizerObjective,
    codebook_use,
    color_error,
    encode_images,
    most_frequent,
    patches,
    start_codebook,
)
from vapi_core.randomness import stream
from vapi_core.training import OptimizationConfig, Slots, train

CPU = torch.device("cpu")


def images(count: int = 40) -> np.ndarray:
    """Blocks of random colour, 8 x 8 pixels."""
    blocks = stream(0, "images", 0).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return blocks.repeat(2, 1).repeat(2, 2)


def training(**changes) -> OptimizationConfig:
    return OptimizationConfig(learning_rate=1e-3, batch_size=8, **({"steps": 6, "checkpoint_every": 1} | changes))


def silent(step: int, metrics: dict) -> None:
    pass


def weights(tokenizer) -> dict:
    return {name: value.clone() for name, value in tokenizer.state_dict().items()}


def test_a_started_codebook_is_used_whole():
    tokenizer = tiny_tokenizer()
    before = codebook_use(encode_images(tokenizer, images(), CPU, 16), 24)[0]
    start_codebook(tokenizer, images(), CPU, seed=0)
    assert codebook_use(encode_images(tokenizer, images(), CPU, 16), 24)[0] == 1 > before


def test_the_codebook_is_still_while_nothing_is_quantized():
    tokenizer = tiny_tokenizer()
    before = weights(tokenizer)
    train(
        tokenizer, TokenizerObjective(tokenizer, images(), CPU, 0.5, 5), training(steps=5), count=40, seed=0, log=silent
    )
    changed = {name for name, value in tokenizer.state_dict().items() if not torch.equal(value, before[name])}
    assert "quantize.embedding.weight" not in changed
    assert {"encoder.conv_in.weight", "quant_conv.weight", "decoder.conv_out.weight"} <= changed


def test_the_codebook_starts_once_in_a_step_of_many_micro_batches_and_then_learns(monkeypatch):
    starts = []

    def start(tokenizer, *arguments):
        start_codebook(tokenizer, *arguments)
        starts.append(tokenizer.quantize.embedding.weight.clone())

    monkeypatch.setattr("vapi_core.pretraining.start_codebook", start)
    tokenizer = tiny_tokenizer()
    objective = TokenizerObjective(tokenizer, images(), CPU, 0.5, 3)
    train(tokenizer, objective, training(micro_batch_size=2), count=40, seed=0, log=silent)
    assert len(starts) == 1
    assert not torch.equal(tokenizer.quantize.embedding.weight, starts[0])


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("last_step", [1, 2, 4], ids=["before the start", "just before it", "after it"])
def test_training_interrupted_about_the_start_ends_as_if_it_had_not_been(tmp_path, last_step):
    def interrupt(step, metrics):
        if step == last_step:
            raise Interrupted

    def run(log=silent, checkpoint=None):
        tokenizer = tiny_tokenizer()
        objective = TokenizerObjective(tokenizer, images(), CPU, 0.5, 3)
        train(tokenizer, objective, training(), count=40, seed=0, log=log, checkpoint=checkpoint, fingerprint="f")
        return weights(tokenizer)

    with pytest.raises(Interrupted):
        run(interrupt, tmp_path / "checkpoint.pt")
    torch.testing.assert_close(run(checkpoint=tmp_path / "checkpoint.pt"), run(), rtol=0, atol=0)


def test_fewer_encoder_outputs_than_codes_are_refused_by_name():
    with pytest.raises(ParameterError, match="tokenizer.codebook_size: 16 different encoder outputs"):
        start_codebook(tiny_tokenizer(), images(1), CPU, seed=0)


def scenes(count=40) -> np.ndarray:
    """Images [N, 16, 16, 3] of four patches, the last of which alone is not black."""
    pictures = np.zeros((count, 16, 16, 3), np.uint8)
    pictures[:, 8:, 8:] = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)
    return pictures


def test_patches_come_in_the_order_of_tokens():
    pictures = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    cut = patches(pictures, 2).reshape(2, 4, 2, 2, 3)
    assert np.array_equal(cut[1, 1], pictures[1, :2, 2:]) and np.array_equal(cut[0, 2], pictures[0, 2:, :2])


def test_a_patch_is_the_same_as_others_where_it_is_most_of_all():
    empty = most_frequent(patches(scenes(), 8))
    assert empty.reshape(-1, 4).tolist() == [[True, True, True, False]] * 40
    assert not most_frequent(patches(images(), 4)).any()
    assert not most_frequent(np.array([[0], [0], [1], [2]])).any()  # a half is not most


def test_an_empty_canvas_has_one_centre_and_the_rest_has_the_others():
    tokenizer = tiny_tokenizer(codebook_size=8, levels=4)
    start_codebook(tokenizer, scenes(), CPU, seed=0)
    rows = tokenizer.quantize.rows(tokenizer.embed(to_tensor(scenes(), CPU))).detach()  # [160, D]
    empty = torch.from_numpy(most_frequent(patches(scenes(), tokenizer.config.downsample)))
    codes = tokenizer.quantize.embedding.weight
    torch.testing.assert_close(codes[0], rows[empty].mean(0), atol=1e-5, rtol=0)
    of_ink = torch.cdist(rows[~empty], codes).argmin(1)
    assert set(of_ink.tolist()) - {0} == set(range(1, 8))  # all of the others are about ink
    with pytest.raises(ParameterError, match="tokenizer.codebook_size: 7 different encoder outputs"):
        start_codebook(tokenizer, scenes(6), CPU, seed=0)


def test_the_error_of_the_color_is_what_is_left_without_the_brightness():
    difference = torch.randn(2, 3, 4, 4)
    brightness = difference.mean(1)
    assert torch.isclose(color_error(difference) + brightness.square().mean(), difference.square().mean())
    assert color_error(brightness[:, None].expand(2, 3, 4, 4)) == 0


def test_the_color_weighs_in_the_loss_as_much_as_asked_for():
    slots, tokenizer = Slots(0, 0, np.arange(8)), tiny_tokenizer()
    plain, metrics = TokenizerObjective(tokenizer, images(), CPU, 0.5, 1)(slots)
    assert "color" not in metrics
    loss, metrics = TokenizerObjective(tokenizer, images(), CPU, 0.5, 1, color_weight=4.0)(slots)
    assert metrics["color"] > 0.01
    assert torch.isclose(loss - plain, 4 * metrics["color"])


def test_an_encoder_that_has_left_the_range_of_numbers_starts_no_codebook_and_the_step_is_named():
    tokenizer = tiny_tokenizer()
    objective = TokenizerObjective(tokenizer, images(), CPU, unquantized_steps=1)
    settings = replace(training(), learning_rate=1e30)
    with pytest.raises(TrainingError, match="stopped at step 2: an encoder output is nan"):
        train(tokenizer, objective, settings, count=40, seed=0, log=silent)
