"""What the reference numbers do not cover; `tests/parity` does the rest."""

import pytest
import torch

from tests.tiny import NO_DROPOUT, random_tokens, tiny_generator
from vapi_core.models.generator import Generator, GeneratorConfig, KVCache


def logits_of(generator, class_ids, tokens):
    with torch.no_grad():
        return generator(class_ids, tokens[:, :-1])


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
