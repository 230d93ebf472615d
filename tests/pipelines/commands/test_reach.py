"""The command that measures how far a token reaches, in a folder where everything before the alignment is done."""

import pytest
import torch

from pipelines.cli.__main__ import main
from pipelines.commands import reach
from pipelines.config.loading import check_params
from tests.alignment.test_credit import MSE, painter
from tests.pipelines.variants.workplace import fill, tiny_content
from tests.tiny import random_tokens, tiny_tokenizer
from vapi_core.alignment.reward import ReconstructionReward


@pytest.fixture
def finished(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = check_params(tiny_content())
    fill(params)
    monkeypatch.setattr(reach, "load_params", lambda: params)


def test_it_prints_shares_that_add_up_to_one(finished, capsys):
    assert main(["reach", "--images", "3"]) == 0
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert list(printed) == ["own", "around", "elsewhere", "own_correlation", "near_correlation"]
    assert sum(float(printed[name]) for name in ("own", "around", "elsewhere")) == pytest.approx(1.0, abs=2e-3)


@pytest.mark.parametrize("name", ["cross-entropy", "base"])
def test_a_variant_without_a_reward_is_told_so(finished, capsys, name):
    assert main(["reach", "--variant", name]) == 1
    assert f"--variant: {name} has no reward of reconstruction" in capsys.readouterr().err


def test_groups_compare_the_gradients_too(finished, capsys):
    assert main(["reach", "--images", "2", "--groups", "64"]) == 0
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert list(printed)[5:] == [f"{c}_{n}" for c in ("token", "token-3x3") for n in ("cosine", "length", "variance")]
    assert float(printed["token_variance"]) < float(printed["token-3x3_variance"])
    assert main(["reach", "--groups", "3"]) == 1
    assert "--groups: 3 is odd." in capsys.readouterr().err


def test_where_a_token_shows_in_its_cell_only_all_forms_have_one_mean_gradient_and_unlike_noise():
    probabilities = (2 * torch.randn(1, 16, 24, generator=torch.Generator().manual_seed(0))).softmax(-1)
    tokenizer = painter()
    with torch.no_grad():
        image = tokenizer.decode(random_tokens(1, 16))
        reward = ReconstructionReward(tokenizer, MSE)
        found = reach.compare_gradients(reward, probabilities, image, group_size=8, groups=1000, seed=0)
    for direction in found.values():
        assert direction.cosine == pytest.approx(1, abs=0.05) and direction.length == pytest.approx(1, abs=0.05)
    assert found["token"].variance < found["token-3x3"].variance < 0.7


def test_what_a_neighbourhood_leaves_out_is_bias():
    """A convolutional decoder shows a token everywhere."""
    probabilities = (2 * torch.randn(1, 16, 24, generator=torch.Generator().manual_seed(0))).softmax(-1)
    tokenizer = tiny_tokenizer()
    with torch.no_grad():
        image = tokenizer.decode(random_tokens(1, 16))
        reward = ReconstructionReward(tokenizer, MSE)
        found = reach.compare_gradients(reward, probabilities, image, group_size=8, groups=1000, seed=0)
    print(found)
    assert found["token"].cosine < found["token-3x3"].cosine < 1
    assert found["token"].length < found["token-3x3"].length < 1
