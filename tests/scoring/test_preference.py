"""CLIP score and HPSv2 on a tiny CLIP, and DrawBench-style prompt files."""

import json

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from tests.tiny_vision import save_tiny_clip
from vapi_core.data.image_files import read_rgb
from vapi_core.errors import FileError, ParameterError
from vapi_core.scoring.clip import load_clip
from vapi_core.scoring.geneval_folder import Prompt, write_prompts, write_sample
from vapi_core.scoring.preference import (
    load_preference_model,
    preference_scores,
    read_prompt_list,
    score_folder,
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_tiny_clip(tmp_path_factory.mktemp("clip") / "tiny")


@pytest.fixture(scope="module")
def clip(weights):
    return load_preference_model("clip", weights)


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    write_prompts(tmp_path, [Prompt({"prompt": f"a cat number {i}", "tag": "AB"[i % 2]}) for i in range(3)])
    for prompt in range(3):
        for sample in range(2):
            write_sample(tmp_path, prompt, sample, generator.integers(0, 256, (40, 40, 3), np.uint8))
    return tmp_path


def test_the_score_is_the_cosine_of_each_image_with_its_own_text(clip, folder):
    images = [read_rgb(folder / f"0000{i}" / "samples" / "0000.png") for i in range(3)]
    texts = ["a cat", "two dogs", "three birds"]
    with torch.no_grad():
        image_features = clip.model.encode_image(torch.stack([clip.preprocess(image) for image in images]))
        text_features = clip.model.encode_text(clip.tokenizer(texts))
    expected = F.cosine_similarity(image_features, text_features).numpy()
    np.testing.assert_allclose(preference_scores(clip, images, texts), expected, atol=1e-6)
    assert abs(expected - preference_scores(clip, images, texts[::-1])).max() > 1e-4


def test_a_folder_is_scored_over_images_with_the_uncertainty_over_prompts(clip, folder):
    counts = []
    score = score_folder(folder, clip, batch_size=4, log=lambda *count: counts.append(count))
    one_by_one = score_folder(folder, clip, batch_size=1)
    assert (score.images, score.prompts) == (6, 3) and counts == [(0, 6), (4, 6), (6, 6)]
    assert score.mean == pytest.approx(one_by_one.mean, abs=1e-6) and score.low <= score.mean <= score.high
    assert set(score.categories) == {"A", "B"}
    assert score.mean == pytest.approx((2 * score.categories["A"] + score.categories["B"]) / 3, abs=1e-6)
    assert score.model.startswith("tiny (") and score.standard_error > 0


def test_unreadable_and_missing_images_are_named_and_the_others_scored(clip, folder):
    (folder / "00001" / "samples" / "0001.png").write_bytes(b"no image")
    (folder / "00002" / "samples" / "0000.png").unlink()
    score = score_folder(folder, clip)
    assert score.images == 4 and [p.parts[-3] for p in score.missing] == ["00002"]
    assert [e.path.parts[-3] for e in score.unreadable] == ["00001"]
    for path in folder.glob("*/samples/*.png"):
        path.write_bytes(b"")
    with pytest.raises(FileError, match="none of its 5 images can be read"):
        score_folder(folder, clip)


def test_hpsv2_takes_the_longest_side_where_clip_takes_the_shortest(weights):
    assert load_preference_model("hpsv2", weights).model.visual.preprocess_cfg["resize_mode"] == "longest"
    assert load_preference_model("clip", weights).model.visual.preprocess_cfg["resize_mode"] == "shortest"


def test_a_checkpoint_file_as_hpsv2s_is_loaded_into_its_architecture_and_no_other(weights, tmp_path):
    """HPSv2's file holds the weights under "state_dict"."""
    config = json.loads((weights / "open_clip_config.json").read_text())["model_cfg"]
    (tmp_path / "tiny-architecture.json").write_text(json.dumps(config))
    (tmp_path / "wider-architecture.json").write_text(json.dumps(config | {"embed_dim": 24}))
    open_clip.add_model_config(tmp_path)
    path = tmp_path / "HPS_v2_compressed.pt"
    torch.save({"state_dict": load_file(weights / "open_clip_model.safetensors")}, path)
    loaded = load_clip("tiny-architecture", path)
    assert torch.equal(loaded.encode_texts(["a cat"]), load_clip("ViT-H-14", weights).encode_texts(["a cat"]))
    assert loaded.name.startswith("tiny-architecture (")
    with pytest.raises(FileError, match="open_clip cannot load wider-architecture from it"):
        load_clip("wider-architecture", path)


def test_an_unknown_score_or_version_and_weights_that_are_not_there_are_refused():
    with pytest.raises(ParameterError, match="no 'pickscore'; choose clip or hpsv2"):
        load_preference_model("pickscore")
    with pytest.raises(ParameterError, match="there is no 3; choose 2.0 or 2.1"):
        load_preference_model("hpsv2", hps_version="3")
    with pytest.raises(FileError, match="xswu/HPSv2: none of HPS_v2.1_compressed.pt is in the hub cache"):
        load_preference_model("hpsv2", hps_version="2.1")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.csv", '\ufeffPrompts,Category\n"A red car, parked",Colors\nTwo cats,Counting\n'),
        ("p.tsv", "Prompt\tCategory\nA red car, parked\tColors\nTwo cats\tCounting\n"),
        ("p.json", '[{"caption": "A red car, parked", "tag": "Colors"}, {"text": "Two cats", "category": "Counting"}]'),
    ],
)
def test_prompts_with_categories_are_read_from_tables_and_json(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert [p.metadata for p in read_prompt_list(tmp_path / name)] == [
        {"prompt": "A red car, parked", "tag": "Colors"},
        {"prompt": "Two cats", "tag": "Counting"},
    ]


@pytest.mark.parametrize("inside", ["\u2028", "\u2029", "\x85"])
@pytest.mark.parametrize("name", ["p.txt", "p.csv", "p.json"])
def test_a_line_separator_inside_of_a_prompt_parts_nothing(tmp_path, inside, name):
    prompts = [f"a photo of{inside}a bench", "second"]
    text = {"p.csv": "\ufeffPrompts\r\n" + "\r\n".join(prompts), "p.json": json.dumps(prompts, ensure_ascii=False)}
    (tmp_path / name).write_text(text.get(name, "\n".join(prompts)), encoding="utf-8", newline="")
    assert [p.text for p in read_prompt_list(tmp_path / name)] == prompts


def test_plain_texts_need_no_category(tmp_path):
    (tmp_path / "p.txt").write_text("A cat\n\nTwo, or three, dogs\n")
    (tmp_path / "p.json").write_text('["A cat", "Two, or three, dogs"]')
    for name in ("p.txt", "p.json"):
        assert [p.text for p in read_prompt_list(tmp_path / name)] == ["A cat", "Two, or three, dogs"]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        (
            "p.csv",
            "Caption_text,Category\nx,y\n",
            "no column prompts, prompt, caption, text, but caption_text, category",
        ),
        ("p.csv", 'Prompts\nA cat\n""\n', "1 prompts are empty, that of row 2 first"),
        ("p.json", "{}", "it is not a list"),
        ("p.json", "[3]", "3 is neither a text nor an object"),
        ("p.txt", "\n", "there is no prompt in it"),
        ("p.json", '[{"prompt": 3}]', "holds something else than text"),
        ("p.json", '[{"prompt": "a", "tag": [1]}]', "holds something else than text"),
        ("p.json", "[" * 100_000, "it is nested too deeply"),
        ("p.json", r'["a \ud83d cat"]', "half of a character"),
    ],
)
def test_a_file_without_prompts_is_refused_with_the_reason(tmp_path, name, content, problem):
    (tmp_path / name).write_text(content)
    with pytest.raises(FileError, match=problem):
        read_prompt_list(tmp_path / name)
    with pytest.raises(FileError, match="missing"):
        read_prompt_list(tmp_path / "nowhere")
