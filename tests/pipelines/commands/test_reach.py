"""The command that measures how far a token reaches, in a folder where everything before the alignment is done."""

import pytest

from pipelines.cli.__main__ import main
from pipelines.commands import reach
from pipelines.variants.loading import check_params
from tests.pipelines.variants.workplace import fill, tiny_content


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
