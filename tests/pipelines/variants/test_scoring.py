"""References, and the scores of a variant's sets, with a tiny network as the extractor."""

import numpy as np
import pandas as pd
import pytest
import torch

from pipelines.config.loading import check_params
from pipelines.config.paths import CLASSIFIERS, REFERENCES, SCORES
from pipelines.config.variant import find_variant
from pipelines.stages import references, sample, score
from pipelines.variants import scoring
from pipelines.variants.run_scores import metrics_of
from tests.pipelines.variants.workplace import fill, run, stage_of, tiny_content
from tests.tiny import random_tokens, tiny_tokenizer
from vapi_core.data.batches import AlignmentData
from vapi_core.data.images import to_uint8
from vapi_core.errors import FileError
from vapi_core.models.classifier import PlainClassifier, save_classifier


@pytest.fixture
def params(tmp_path, monkeypatch):
    """A folder in which everything before the scores of the base is done; its training images are the reference."""
    monkeypatch.chdir(tmp_path)
    content = tiny_content()
    content["score"] |= {"extractors": ["scorer-classifier"], "reference_splits": ["train"], "kid_subset_size": 4}
    content["subset"]["splits"] = {"train": 10, "scorer": 10}
    content["controls"]["base"]["temperatures"] = [1.0, 0.5]
    params = check_params(content)
    fill(params)
    torch.manual_seed(0)
    save_classifier(PlainClassifier(5), CLASSIFIERS / "scorer", {})
    run(sample, params, "base")
    return params


def scored(params):
    stage = stage_of(score, params, variant="base")
    return scoring.score_variant(stage, find_variant(params, "base"))[0]


def test_every_set_has_its_scores_against_the_reference(params):
    stage = stage_of(references, params)
    scoring.prepare_references(stage)
    assert (REFERENCES / "scorer-classifier/train.npz").is_file() and (REFERENCES / "protocol.json").is_file()
    assert stage.metrics["reconstruction_fid scorer-classifier"] > 0
    table = scored(params)
    settings = table[["variant", "seed", "temperature", "guidance_scale"]].to_dict("split")["data"]
    assert settings == [["base", 0, 1.0, 1.0], ["base", 0, 1.0, 2.0], ["base", 0, 0.5, 1.0]]
    assert table["steps"].isna().all() and set(table["reference"]) == {"train"}
    assert np.isfinite(table[["fid", "is_mean", "kid_mean", "precision", "recall", "accuracy"]].to_numpy()).all()
    written = pd.read_csv(SCORES / "experiment/base/scores.csv")
    pd.testing.assert_frame_equal(
        written.drop(columns="steps"), table.drop(columns="steps"), check_dtype=False, rtol=1e-5
    )
    assert list(written.columns[:5]) == ["variant", "steps", "seed", "temperature", "guidance_scale"]
    again = scored(params)
    pd.testing.assert_frame_equal(again, table)


def test_scores_of_a_setting_that_is_not_the_main_one_say_so_in_their_name(params):
    scoring.prepare_references(stage_of(references, params))
    metrics = metrics_of(scored(params), find_variant(params, "base"))
    fids = {name for name in metrics if "/fid" in name}
    assert fids == {f"score/fid/scorer{setting}" for setting in ("", "/T1.0-g2.0", "/T0.5-g1.0")}


def test_a_set_or_a_reference_that_is_gone_is_named_with_the_command_that_makes_it(params):
    with pytest.raises(FileError, match=r"references/scorer-classifier/train\.npz.*`dvc repro references`"):
        scored(params)
    scoring.prepare_references(stage_of(references, params))
    (find_variant(params, "base").sets[1].directory / "images.npy").unlink()
    with pytest.raises(FileError, match=r"images\.npy.*`dvc repro --glob 'sample\*@base'`"):
        scored(params)
    assert not (SCORES / "experiment/base").exists()


def test_reconstructions_are_a_file_written_pass_by_pass(tmp_path, monkeypatch):
    tokenizer, tokens = tiny_tokenizer(), random_tokens(7, 16)
    with torch.no_grad():
        expected = to_uint8(tokenizer.decode(tokens))
    data = AlignmentData(tokens.numpy().astype(np.uint16), np.zeros(7, int), expected, torch.device("cpu"))
    monkeypatch.setattr(scoring, "OWN_WORK", tmp_path / "work")
    monkeypatch.setattr(scoring, "open_split", lambda split, device, family: data)
    monkeypatch.setattr(scoring, "open_tokenizer", lambda device: tokenizer)
    monkeypatch.setattr(scoring, "images_of_a_pass", lambda side: 3)
    images = scoring.reconstruct("heldout", torch.device("cpu"), "llamagen")
    assert isinstance(images, np.memmap)
    # another batch may round a pixel otherwise
    assert np.abs(images.astype(int) - expected).max() <= 1 and (images == expected).mean() > 0.99
