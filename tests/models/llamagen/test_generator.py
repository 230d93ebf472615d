"""What the reference numbers do not cover; `tests/parity` does the rest."""

import pytest
import torch

from tests.tiny import CAPTIONED, NO_DROPOUT, random_tokens, tiny_captions, tiny_generator
from vapi_core.models.llamagen.generator import Generator, GeneratorConfig, KVCache
from vapi_core.models.policy import Captions, left_pad


def logits_of(generator, condition, tokens):
    with torch.no_grad():
        return generator(condition, tokens[:, :-1])


@pytest.mark.parametrize("changed", [0, 4, 7])
def test_a_token_changes_only_the_logits_that_come_after_it(changed):
    generator, class_ids, tokens = tiny_generator(), torch.tensor([0, 3]), random_tokens(2, 9)
    before = logits_of(generator, class_ids, tokens)
    other = tokens.clone()
    other[:, changed] = (other[:, changed] + 1) % 24
    after = logits_of(generator, class_ids, other)
    assert torch.equal(after[:, : changed + 1], before[:, : changed + 1])
    assert (after[:, changed + 1 :] != before[:, changed + 1 :]).any(-1).all()


def test_the_class_changes_all_logits():
    generator, tokens = tiny_generator(), random_tokens(1, 9)
    of_classes = [logits_of(generator, torch.tensor([c]), tokens) for c in (0, 1, generator.null_class)]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert (of_classes[a] != of_classes[b]).any(-1).all()


@pytest.mark.parametrize("kv_heads", [None, 2, 1])
def test_decoding_through_the_cache_equals_the_full_forward(kv_heads):
    generator = tiny_generator(kv_heads=kv_heads)
    class_ids, tokens = torch.tensor([1, 4]), random_tokens(2, 9)
    cache = KVCache(generator.config, 2, torch.device("cpu"), torch.float32)
    cache.store.fill_(torch.nan)  # memory of an earlier batch must not be read
    with torch.no_grad():
        steps = [generator.prefill(class_ids, cache)]
        steps += [generator.decode_step(tokens[:, t - 1], t, cache) for t in range(1, 9)]
    assert torch.allclose(torch.stack(steps, 1), logits_of(generator, class_ids, tokens), atol=1e-5)


def test_fewer_key_heads_make_a_smaller_cache():
    sizes = [
        KVCache(tiny_generator(kv_heads=n).config, 2, torch.device("cpu"), torch.float32).store.numel()
        for n in (4, 2, 1)
    ]
    assert sizes[0] == 2 * sizes[1] == 4 * sizes[2]


def test_classes_are_dropped_while_training_and_only_then():
    generator = tiny_generator(**(NO_DROPOUT | {"class_dropout": 0.5}))
    class_ids, tokens = torch.zeros(64, dtype=torch.long), random_tokens(1, 9).repeat(64, 1)
    with_class = logits_of(generator, class_ids[:1], tokens[:1])
    without = logits_of(generator, torch.tensor([generator.null_class]), tokens[:1])
    assert torch.equal(logits_of(generator, class_ids, tokens)[5], logits_of(generator, class_ids, tokens)[6])

    torch.manual_seed(0)
    trained = logits_of(generator.train(), class_ids, tokens)
    is_with = (trained - with_class).abs().amax((1, 2)) < 1e-4
    is_without = (trained - without).abs().amax((1, 2)) < 1e-4
    assert (is_with ^ is_without).all()
    assert 16 < is_without.sum() < 48


def test_other_dropouts_act_while_training_and_only_then():
    generator = tiny_generator(class_dropout=0.0)
    class_ids, tokens = torch.tensor([1]), random_tokens(1, 9)
    still = logits_of(generator, class_ids, tokens)
    assert torch.equal(logits_of(generator, class_ids, tokens), still)
    generator.train()
    assert not torch.equal(logits_of(generator, class_ids, tokens), logits_of(generator, class_ids, tokens))


def test_the_null_class_is_one_more_row_of_the_class_table():
    generator = tiny_generator(classes=7)
    assert generator.null_class == 7
    assert generator.cls_embedding.embedding_table.weight.shape[0] == 8


def test_a_fresh_generator_finds_all_tokens_equally_likely():
    generator = Generator(GeneratorConfig(dim=32, layers=1, heads=2, grid=3, codebook_size=24, classes=5)).eval()
    logits = logits_of(generator, torch.tensor([1]), random_tokens(1, 9))
    assert logits.shape == (1, 9, 24) and not logits.any()


def test_a_gradient_reaches_every_parameter():
    generator = tiny_generator(**NO_DROPOUT).train()
    logits = generator(torch.arange(5), random_tokens(5, 9)[:, :-1])
    logits.log_softmax(-1)[..., 0].mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in generator.parameters())


# Captions


def test_left_padding_moves_a_caption_to_the_end_and_clears_what_is_before_it():
    features = torch.arange(1.0, 9.0).reshape(2, 4, 1)
    captions = left_pad(features, torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]]))
    assert captions.features[..., 0].tolist() == [[1, 2, 3, 4], [0, 0, 0, 5]]
    assert captions.mask.tolist() == [[True] * 4, [False, False, False, True]]


def test_every_token_of_a_caption_changes_the_logits_and_its_padding_none():
    generator, captions, tokens = tiny_generator(**CAPTIONED), tiny_captions(), random_tokens(4, 9)
    before = logits_of(generator, captions, tokens)
    for position in range(5):
        features = captions.features.clone()
        features[:, position] += 1
        changed = (logits_of(generator, Captions(features, captions.mask), tokens) != before).any(-1)  # [B, T]
        assert torch.equal(changed, captions.mask[:, position, None].expand(-1, 9))


def test_captions_repeat_as_class_ids_do():
    captions = tiny_captions()
    repeated = captions.repeat_interleave(3)
    rows = torch.arange(4).repeat_interleave(3)
    assert len(repeated) == 12 and repeated.device == rows.device
    assert torch.equal(repeated.features, captions.features[rows]) and torch.equal(repeated.mask, captions.mask[rows])


def test_a_caption_is_the_same_beside_longer_and_shorter_ones():
    generator, captions, tokens = tiny_generator(**CAPTIONED), tiny_captions(), random_tokens(4, 9)
    together = logits_of(generator, captions, tokens)
    for i in range(4):
        alone = logits_of(generator, Captions(captions.features[[i]], captions.mask[[i]]), tokens[[i]])
        assert torch.allclose(alone[0], together[i], atol=1e-5)


@pytest.mark.parametrize("kv_heads", [None, 2])
def test_decoding_a_caption_through_the_cache_equals_the_full_forward(kv_heads):
    generator = tiny_generator(**(CAPTIONED | {"kv_heads": kv_heads}))
    captions, tokens = tiny_captions(), random_tokens(4, 9)
    cache = generator.new_cache(4)
    cache.store.fill_(torch.nan)  # memory of an earlier batch must not be read
    with torch.no_grad():
        steps = [generator.prefill(captions, cache)]
        steps += [generator.decode_step(tokens[:, t - 1], t, cache) for t in range(1, 9)]
    assert torch.allclose(torch.stack(steps, 1), logits_of(generator, captions, tokens), atol=1e-5)


def test_captions_are_dropped_while_training_and_only_then():
    generator = tiny_generator(**(CAPTIONED | NO_DROPOUT | {"class_dropout": 0.5}))
    captions, tokens = tiny_captions((3,) * 64), random_tokens(1, 9).repeat(64, 1)
    both = generator.append_null(captions)
    expected = logits_of(generator, both, tokens.repeat(2, 1))
    torch.manual_seed(0)
    trained = logits_of(generator.train(), captions, tokens)
    is_with = (trained - expected[:64]).abs().amax((1, 2)) < 1e-4
    is_without = (trained - expected[64:]).abs().amax((1, 2)) < 1e-4
    assert (is_with ^ is_without).all()
    assert 16 < is_without.sum() < 48


def test_a_null_caption_keeps_the_mask_of_the_caption_beside_it():
    generator, captions = tiny_generator(**CAPTIONED), tiny_captions()
    both = generator.append_null(captions)
    assert len(both) == 8 and torch.equal(both.mask, captions.mask.repeat(2, 1))
    assert torch.equal(both.features[:4], captions.features)
    assert torch.equal(both.features[4:], generator.cls_embedding.uncond_embedding.expand(4, -1, -1))


def test_features_of_half_precision_are_taken_as_they_come_from_the_cache():
    generator, captions, tokens = tiny_generator(**CAPTIONED), tiny_captions(), random_tokens(4, 9)
    half = Captions(captions.features.half(), captions.mask)
    assert torch.allclose(logits_of(generator, half, tokens), logits_of(generator, captions, tokens), atol=1e-2)
    assert generator.append_null(half).features.dtype == torch.float32


def test_captions_of_another_width_or_length_are_no_condition_for_this_generator():
    generator, captions = tiny_generator(**CAPTIONED), tiny_captions()
    for features, mask in (
        (captions.features[..., :5], captions.mask),
        (captions.features[:, 1:], captions.mask[:, 1:]),
    ):
        with pytest.raises(AssertionError, match="another encoder or limit"):
            generator(Captions(features, mask), random_tokens(4, 8))


def test_a_gradient_reaches_every_parameter_of_a_captioned_generator_and_the_null_caption_is_none():
    generator = tiny_generator(**(CAPTIONED | NO_DROPOUT)).train()
    generator(tiny_captions(), random_tokens(4, 8)).log_softmax(-1)[..., 0].mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in generator.parameters())
    assert "cls_embedding.uncond_embedding" in generator.state_dict()
    assert "cls_embedding.uncond_embedding" not in dict(generator.named_parameters())
