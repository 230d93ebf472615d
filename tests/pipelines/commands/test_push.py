"""Aligned weights become a folder that others can use, with a card that says what they are."""

import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from pipelines.cli.__main__ import main
from pipelines.config.profiles import compose
from tests.tiny import tiny_generator, tiny_tokenizer
from vapi_core.models.checkpoints import load_model, save_model

ROOT = Path(__file__).parents[3]
SOURCE = "data/aligned/va-pi/4"
PUSH = ["push", SOURCE, "released", "--license", "apache-2.0"]


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A run of the default profile with tiny models, after its report."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(compose("mnist", ROOT))
    base = save_model("data/generator", "generator", tiny_generator())
    save_model("data/tokenizer", "tokenizer", tiny_tokenizer())
    save_model(SOURCE, "generator", tiny_generator(seed=1), base_sha256=base)
    score = {"fid": 1.5, "fid_low": 1.25, "fid_high": 1.75, "seeds": 8}
    settings = {"va-pi g=1.0": score, "base g=1.0": score | {"fid": 2.5}, "cross-entropy g=1.0": score}
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports/metrics.json").write_text(json.dumps({"scorer-classifier": settings}))
    return tmp_path


def test_the_folder_has_both_models_and_a_card_with_origin_scores_and_licence(finished, capsys):
    assert main(PUSH) == 0 and capsys.readouterr().out == "released\n"
    names = {path.name for path in (finished / "released").iterdir()}
    assert names == {
        "README.md",
        *(f"{k}.{end}" for k in ("generator", "tokenizer") for end in ("json", "safetensors")),
    }
    assert load_model("released", "generator").config == tiny_generator().config
    card = ModelCard.load(finished / "released/README.md")
    assert card.data.license == "apache-2.0" and card.data.model_name == "mnist-va-pi"
    ((result,),) = ([r for r in card.data.eval_results if r.metric_type == "fid"],)
    assert result.metric_value == 1.5 and "scorer-classifier" in result.metric_name
    assert "| scorer-classifier | va-pi g=1.0 | fid | 1.5 | [1.25, 1.75] | 8 |" in card.text
    assert "| scorer-classifier | base g=1.0 | fid | 2.5 |" in card.text and "cross-entropy" not in card.text
    sha256 = json.loads((finished / "data/generator/generator.json").read_text())["sha256"]
    assert f"`{sha256}`" in card.text and "trained from scratch on mnist" in card.text


def test_what_is_published_can_be_drawn_from(finished):
    assert main(PUSH) == 0
    assert main(["sample", "drawn", "--generator", "released", "--classes", "0,1"]) == 0
    assert len(list((finished / "drawn").rglob("*.png"))) == 2


def test_the_hub_gets_the_same_files_in_a_repository_of_its_own(finished, monkeypatch, capsys):
    told = {}

    class Api:
        def create_repo(self, name, private, exist_ok):
            told["repository"] = (name, private, exist_ok)

        def upload_folder(self, repo_id, folder_path, commit_message):
            told["files"] = sorted(path.name for path in folder_path.iterdir())
            return f"https://huggingface.co/{repo_id}"

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert main(["push", SOURCE, "me/digits", "--hub", "--private", "--license", "mit"]) == 0
    assert told["repository"] == ("me/digits", True, True) and "README.md" in told["files"] and len(told["files"]) == 5
    assert capsys.readouterr().out == "https://huggingface.co/me/digits\n" and not (finished / "me").exists()


def test_the_licence_of_a_known_base_is_taken_and_an_unknown_one_is_asked_for(finished, capsys):
    assert main(PUSH[:3]) == 1
    assert "--license: say under which licence the weights stand" in capsys.readouterr().err
    content = yaml.safe_load(compose("llamagen-xl-c2i", ROOT))
    (finished / "params.yaml").write_text(yaml.safe_dump(content))
    assert main(PUSH[:3]) == 0
    card = ModelCard.load(finished / "released/README.md")
    assert card.data.license == "mit" and card.data.base_model == "FoundationVision/LlamaGen"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda root: (root / "released").mkdir(), "released: it is there already."),
        (
            lambda root: (root / "reports/metrics.json").write_text("{}"),
            "reports/metrics.json: it has no scores of va-pi",
        ),
        (lambda root: save_model("data/generator", "generator", tiny_generator(seed=9)), "aligned from another base"),
        (lambda root: (root / SOURCE / "generator.safetensors").write_bytes(b"x"), "generator.safetensors: "),
        (lambda root: (root / SOURCE / "generator.json").unlink(), f"{SOURCE}: there are no aligned weights in it."),
    ],
)
def test_what_is_not_whole_or_not_of_this_run_is_not_published(finished, capsys, change, told):
    change(finished)
    assert main(PUSH) == 1
    assert told in capsys.readouterr().err and not (finished / "released/README.md").exists()
    assert main(["push", "data/generator", "elsewhere", "--license", "mit"]) == 1
    assert "data/generator: this is no folder of aligned weights." in capsys.readouterr().err
