"""What is said of logits is that of plain formulas, also where it goes in parts."""

import pytest
import torch

from vapi_core.models import logits as logits_module
from vapi_core.models.logits import final_log_probabilities, mean_entropy, next_token_loss, token_log_probabilities

B, G, T, V = 3, 4, 5, 7


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_are_those_of_a_log_softmax(temperature):
    logits, chosen = random(B, T, V), tokens(B, G, T)
    expected = (logits / temperature).log_softmax(-1)[:, None].expand(B, G, T, V).gather(-1, chosen[..., None])[..., 0]
    assert torch.allclose(token_log_probabilities(logits, chosen, temperature), expected, atol=1e-12)


def test_the_prior_loss_is_the_cross_entropy():
    logits, reference = random(B, T, V), tokens(B, T)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), reference.flatten())
    assert torch.allclose(next_token_loss(logits, reference), expected, atol=1e-12)


@pytest.fixture(params=[1, 3, 1000])
def rows_at_a_time(request, monkeypatch):
    monkeypatch.setattr(logits_module, "CHUNK_ELEMENTS", request.param * V)


def test_final_log_probabilities_have_the_values_and_the_gradient_of_the_plain_form(rows_at_a_time):
    weight, x, sequences = random(V, 6), random(B, T, 6, seed=1), tokens(B, G, T)
    sequences[:, 1] = sequences[:, 0]  # a token that two rollouts share gets both their gradients
    coefficients = random(B, G, T, seed=2)
    values, gradients = [], []
    for form in (token_log_probabilities, final_log_probabilities):
        w = weight.clone().requires_grad_()
        log_p = form(x @ w.T, sequences)
        ((log_p - log_p.detach()).exp() * coefficients).mean().backward()
        values.append(log_p.detach())
        gradients.append(w.grad)
    assert torch.equal(values[0], values[1])
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-12, atol=1e-15) and gradients[0].norm() > 1e-3


def test_the_gradient_of_logits_lies_where_the_logits_were_so_a_second_backward_fails():
    logits = random(B, T, V).requires_grad_() * 1.0
    addresses = []
    logits.register_hook(lambda gradient: addresses.append(gradient.data_ptr()))
    log_p = final_log_probabilities(logits, tokens(B, G, T))
    log_p.sum().backward(retain_graph=True)
    assert addresses == [logits.data_ptr()]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        log_p.sum().backward()


def test_entropy_is_that_of_the_whole_tensor(rows_at_a_time):
    p = random(B, T, V).softmax(-1)
    assert mean_entropy(p.log()).item() == pytest.approx(-(p * p.log()).sum(-1).mean().item(), rel=1e-12)
