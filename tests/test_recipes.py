"""The recipes of docs/recipes.md, followed: what they name suffices."""

import argparse
import shutil
import subprocess
import sys
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import pytest
import torch

from pipelines.config.loading import check_params
from pipelines.config.paths import ALIGNED, CURVES, SUBSET
from pipelines.config.variant import find_variant
from pipelines.stages import align, score, subset
from tests.pipelines.variants.workplace import ROOT, fill, run, stage_of, tiny_content
from vapi_core.alignment.method import Method
from vapi_core.alignment.methods import METHODS
from vapi_core.alignment.reward import Comparison, RewardWeights, term
from vapi_core.alignment.va_pi import VaPiConfig
from vapi_core.data.sources import ImageSource
from vapi_core.data.subset import Subset
from vapi_core.errors import ParameterError
from vapi_core.limits import Checked, Ratio, Weight
from vapi_core.models.checkpoints import load_model
from vapi_core.sources import SOURCES, Source, balanced


@pytest.fixture
def content(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tiny_content()


def with_config(config):
    return replace(METHODS["va-pi"], config=config)


# A hyper-parameter


@dataclass(frozen=True, kw_only=True)
class WithHyperParameter(VaPiConfig):
    sharpness: Ratio = 0.5


def test_a_hyper_parameter_is_a_field(content, monkeypatch):
    content["align"]["sharpness"] = 0.25
    with pytest.raises(ParameterError, match="sharpness"):
        check_params(content)
    monkeypatch.setitem(METHODS, "va-pi", with_config(WithHyperParameter))
    assert find_variant(check_params(content), "va-pi").alignment.settings["sharpness"] == 0.25
    content["variants"]["va-pi"]["align"]["sharpness"] = 2.0
    with pytest.raises(ParameterError, match="variants.va-pi.align.sharpness: must be at most 1"):
        check_params(content)
    del content["align"]["sharpness"], content["variants"]["va-pi"]["align"]["sharpness"]
    assert find_variant(check_params(content), "va-pi").alignment.config.sharpness == 0.5


# A term of the reward


def contrast(comparison: Comparison) -> torch.Tensor:
    """How far the spread of pixels is from the reference's."""
    images = comparison.reference.images.flatten(1)
    return (comparison.grouped(comparison.decoded.flatten(1)).std(-1) - images.std(-1)[:, None]).abs()


@dataclass(frozen=True)
class WithContrast(RewardWeights):
    contrast: Weight = term(contrast, 0.0)


@dataclass(frozen=True, kw_only=True)
class Rewarded(VaPiConfig):
    reward: WithContrast = field(default_factory=WithContrast)


def test_a_term_of_the_reward_is_a_function_and_a_line(content, monkeypatch):
    monkeypatch.setitem(METHODS, "va-pi", with_config(Rewarded))
    content["variants"]["va-pi"]["align"] = {"reward": {"contrast": 2.0}}
    params = check_params(content)
    assert find_variant(params, "va-pi").alignment.config.reward.terms == ["mse", "contrast"]
    fill(params)
    run(align, params, "va-pi")
    curves = pd.read_csv(CURVES / "va-pi" / "0.csv")
    expected = -(curves["reward_mse"] + 2.0 * curves["reward_contrast"])
    assert (curves["reward_contrast"] > 0).all()
    assert curves["reward"].to_numpy() == pytest.approx(expected.to_numpy(), rel=1e-4)


def contrast_everywhere(comparison: Comparison) -> list[torch.Tensor]:
    return [contrast(comparison)[..., None, None]]


@dataclass(frozen=True)
class WithMaps(RewardWeights):
    contrast: Weight = term(contrast, 0.0, contrast_everywhere)


@dataclass(frozen=True, kw_only=True)
class RewardedPerToken(VaPiConfig):
    reward: WithMaps = field(default_factory=WithMaps)


def test_credit_per_token_needs_the_error_maps_of_a_term(content, monkeypatch):
    content["variants"]["va-pi"]["align"] = {"credit": "token", "reward": {"contrast": 2.0}}
    monkeypatch.setitem(METHODS, "va-pi", with_config(Rewarded))
    with pytest.raises(ParameterError, match="reward.contrast: this term has no error maps, which credit token needs"):
        check_params(content)
    monkeypatch.setitem(METHODS, "va-pi", with_config(RewardedPerToken))
    fill(params := check_params(content))
    run(align, params, "va-pi")
    curves = pd.read_csv(CURVES / "va-pi" / "0.csv")
    expected = -(curves["reward_mse"] + 2.0 * curves["reward_contrast"])
    assert curves["reward"].to_numpy() == pytest.approx(expected.to_numpy(), rel=1e-4)


# An alignment method


@dataclass(frozen=True)
class FlatteningConfig(Checked):
    pull: Weight = 1.0


class Flattening:
    """Pulls the next token's distribution towards the uniform one."""

    def __init__(self, config, setting):
        self.config, self.generator, self.data = config, setting.generator.eval(), setting.data

    def __call__(self, batch):
        tokens, condition = self.data.batch(batch.items)
        loss = -self.config.pull * self.generator(condition, tokens[:, :-1]).log_softmax(-1).mean()
        return loss, {"flatness": loss.detach()}


FLATTENING = Method(FlatteningConfig, Flattening, needs=lambda config: frozenset())


def test_an_alignment_method_is_a_module_and_a_line(content, monkeypatch):
    variant = {"table": "experiment", "method": "flattening", "align": {"pull": 0.5}, "guidance_scales": [1.0]}
    content["variants"]["flat"] = variant
    with pytest.raises(ParameterError, match="there is no method 'flattening'"):
        check_params(content)
    monkeypatch.setitem(METHODS, "flattening", FLATTENING)
    params = check_params(content)
    fill(params)
    run(align, params, "flat")
    flatness = pd.read_csv(CURVES / "flat" / "0.csv")["flatness"]
    assert flatness.iloc[-1] < flatness.iloc[0]
    before = load_model("data/generator", "generator").state_dict()
    after = load_model(ALIGNED / "flat" / "0", "generator").state_dict()
    assert before.keys() == after.keys() and any(not torch.equal(before[name], after[name]) for name in before)
    assert score.plan(params, argparse.Namespace(variant="flat")).name == "score@flat"


# A source


def stripes(params) -> ImageSource:
    ids = tuple(map(str, range(40)))
    side = params.image_size
    return ImageSource(
        "stripes", side, tuple("ab"), ids, np.arange(40) % 2, lambda i: np.full((side, side, 3), 5 * i, np.uint8)
    )


def test_a_source_of_images_is_a_function_and_a_line(content, monkeypatch):
    content["classifiers"]["uci"] = None  # which reads digits
    content["score"]["extractors"] = ["scorer-classifier"]
    content["subset"] |= {"source": "stripes", "splits": {"train": 20, "scorer": 10, "heldout": 10}}
    with pytest.raises(ParameterError, match="subset.source: there is no source 'stripes'; there are mnist"):
        check_params(content)
    monkeypatch.setitem(SOURCES, "stripes", Source(balanced(stripes), path=False))
    stage = stage_of(subset, check_params(content))
    subset.work(stage, argparse.Namespace())
    images, labels = Subset.open(SUBSET, "").split("heldout")
    assert images.shape == (10, 12, 12, 3) and np.bincount(labels).tolist() == [5, 5]
    for change, told in (({"path": "images"}, "subset.path"), ({"source": "scenes"}, "task c2i needs one of mnist")):
        with pytest.raises(ParameterError, match=told):
            check_params(content | {"subset": content["subset"] | change})


# A family of generators

FAMILY = '''
"""A family whose generator is LlamaGen's under another name."""

import dataclasses

from vapi_core.models.llamagen.family import LLAMAGEN
from vapi_core.models.llamagen.generator import Generator


class Toy(Generator):
    """The same."""


TOY = dataclasses.replace(LLAMAGEN, policy=Toy, encoders=("minilm",))
'''
SAVE_AND_LOAD = """
import torch
from pipelines.config.loading import check_params
from tests.pipelines.variants.workplace import tiny_content
from vapi_core.models.checkpoints import load_model, save_model
from vapi_core.models.families import FAMILIES
from vapi_core.models.llamagen.generator import GeneratorConfig

content = tiny_content()
content["generator"]["family"] = "toy"
family = FAMILIES[check_params(content).generator.family]
model = family.policy(GeneratorConfig(dim=32, layers=1, heads=2, multiple_of=32, grid=2, codebook_size=8, classes=2))
save_model("saved", "generator", model)
assert type(load_model("saved", "generator")).__name__ == "Toy"
"""


def test_a_family_of_generators_is_a_folder_and_a_line(tmp_path):
    for name in ("vapi_core", "pipelines", "profiles", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    models = tmp_path / "vapi_core" / "models"
    (models / "toy").mkdir()
    (models / "toy" / "__init__.py").touch()
    (models / "toy" / "family.py").write_text(FAMILY)
    families = models / "families.py"
    lines = families.read_text()
    assert '    "janus": JANUS,\n' in lines
    lines = lines.replace('    "janus": JANUS,\n', '    "janus": JANUS,\n    "toy": TOY,\n')
    families.write_text(lines.replace("\n\nFAMILIES", "\nfrom vapi_core.models.toy.family import TOY\n\nFAMILIES"))
    result = subprocess.run([sys.executable, "-c", SAVE_AND_LOAD], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_every_recipe_names_files_that_are_there():
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    paths = [word for word in text.split("`") if word.startswith(("vapi_core/", "pipelines/", "tests/"))]
    assert len(paths) > 8 and all((ROOT / path).exists() for path in paths)
    assert text.count("\n## ") == 6
