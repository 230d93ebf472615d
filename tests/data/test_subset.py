import dataclasses
import hashlib
import os
import shutil
import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from tests.damage import check_every_flip_is_named
from vapi_core.arrays import array_writer
from vapi_core.data.sources import ImageSource, mnist_source
from vapi_core.data.subset import Subset, plan_subset, read_subset_text, subset_hash, write_subset
from vapi_core.errors import FileError, ParameterError
from vapi_core.files import read_checked_json, read_json, sha256_file, write_checked_json

REMEDY = "Make it anew."

CLASSES = ("ant", "bee", "cow")
LABELS = np.array([0, 1, 2] * 10)  # 10 images of each class


def make_source(labels: Iterable[int] = LABELS, side: int = 4, doubles: dict[int, int] | None = None) -> ImageSource:
    """Every image is random pixels of its own, but image i shows what image doubles[i] shows."""
    labels = np.array(list(labels))

    def load(index: int) -> np.ndarray:
        generator = np.random.default_rng((doubles or {}).get(index, index))
        return generator.integers(0, 256, (side, side, 3), dtype=np.uint8)

    ids = tuple(f"image-{index}" for index in range(len(labels)))
    return ImageSource("made-up", side, CLASSES, ids, labels, load)


def plan(splits: dict[str, int], seed: int = 0, labels: np.ndarray = LABELS):
    return plan_subset(labels, CLASSES, splits, seed)


def class_counts(indices: list[int]) -> list[int]:
    return np.bincount(LABELS[indices], minlength=3).tolist()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data") / "subset"
    write_subset(make_source(), plan({"train": 18, "heldout": 6}), directory)
    return directory


@pytest.fixture
def copied(written, tmp_path):
    return Path(shutil.copytree(written, tmp_path / "subset"))


# planning


def test_splits_are_disjoint_and_hold_as_many_of_each_class():
    chosen = plan({"train": 18, "heldout": 6}).chosen
    assert class_counts(chosen["train"]) == [6, 6, 6]
    assert class_counts(chosen["heldout"]) == [2, 2, 2]
    assert len(set(chosen["train"]) | set(chosen["heldout"])) == 24


def test_a_count_that_does_not_divide_is_off_by_at_most_one_in_each_split_and_in_all():
    chosen = plan({"a": 4, "b": 5, "c": 10}).chosen
    for indices in chosen.values():
        assert max(class_counts(indices)) - min(class_counts(indices)) == 1
    total = class_counts([index for indices in chosen.values() for index in indices])
    assert max(total) - min(total) == 1


def test_the_seed_decides_who_gets_the_remainder():
    assert {LABELS[plan({"one": 1}, seed).chosen["one"][0]] for seed in range(20)} == {0, 1, 2}


def test_the_same_seed_gives_the_same_plan_and_another_seed_another():
    assert plan({"train": 18}) == plan({"train": 18})
    assert set(plan({"train": 18}, seed=1).chosen["train"]) != set(plan({"train": 18}).chosen["train"])


def test_a_split_does_not_change_when_another_one_is_added_behind_it():
    assert plan({"train": 10}).chosen["train"] == plan({"train": 10, "heldout": 7}).chosen["train"]


def test_the_images_of_a_split_come_neither_by_class_nor_in_the_order_of_the_source():
    train = plan({"train": 30}).chosen["train"]
    assert sorted(train) == list(range(30)) != train
    assert LABELS[train].tolist() != sorted(LABELS[train])


def test_a_split_that_asks_for_more_than_there_is_says_how_many_there_are():
    with pytest.raises(ParameterError, match="9 images are 3 of class 'ant'.* has 10 .* take 8") as caught:
        plan({"train": 24, "heldout": 9})
    assert caught.value.name == "subset.splits.heldout"


def test_a_rare_class_is_the_one_that_is_named():
    labels = np.array([0] * 10 + [1] * 2 + [2] * 10)
    with pytest.raises(ParameterError, match="'bee'.* has 2 "):
        plan({"train": 9}, labels=labels)


# writing


def test_the_arrays_hold_the_planned_images_in_the_planned_order(written):
    source, chosen = make_source(), plan({"train": 18, "heldout": 6}).chosen
    subset = Subset.open(written)
    indices = chosen["train"] + chosen["heldout"]
    assert (subset.images == np.stack([source.load(index) for index in indices])).all()
    assert subset.labels.tolist() == LABELS[indices].tolist()


def test_the_manifest_tells_where_every_image_comes_from(written):
    manifest = read_checked_json(written / "manifest.json")
    assert {key: value for key, value in manifest.items() if key != "items"} == {
        "kind": "subset",
        "source": "made-up",
        "seed": 0,
        "image_size": 4,
        "classes": list(CLASSES),
        "splits": {"train": [0, 18], "heldout": [18, 24]},
        "count": 24,
        "sha256": {name: sha256_file(written / name) for name in ("images.npy", "labels.npy")},
    }
    source = make_source()
    for item in manifest["items"]:
        index = source.ids.index(item["id"])
        assert item["class"] == CLASSES[LABELS[index]]
        assert item["sha256"] == hashlib.sha256(source.load(index).tobytes()).hexdigest()
    assert [item["split"] for item in manifest["items"]] == ["train"] * 18 + ["heldout"] * 6


def test_writing_twice_gives_the_same_bytes(written, tmp_path):
    write_subset(make_source(), plan({"train": 18, "heldout": 6}), tmp_path / "again")
    for name in ("images.npy", "labels.npy", "manifest.json"):
        assert (tmp_path / "again" / name).read_bytes() == (written / name).read_bytes()


def test_an_image_that_was_not_chosen_is_never_loaded(tmp_path):
    loaded = []
    source = make_source()
    watched = dataclasses.replace(source, load=lambda index: loaded.append(index) or source.load(index))
    small = plan({"train": 3, "heldout": 3})
    write_subset(watched, small, tmp_path / "subset")
    assert loaded == small.chosen["train"] + small.chosen["heldout"]


def test_a_failure_halfway_leaves_the_old_subset_and_nothing_else(copied):
    before = subset_hash(copied)
    source = make_source()

    def load(index: int) -> np.ndarray:
        if index == broken:
            raise FileError("cat/7.png", "cannot be read.")
        return source.load(index)

    new = plan({"train": 12}, seed=5)
    broken = new.chosen["train"][7]
    with pytest.raises(FileError, match="cat/7.png"):
        write_subset(dataclasses.replace(source, load=load), new, copied)
    assert subset_hash(copied) == before
    assert Subset.open(copied, REMEDY).splits == {"train": (0, 18), "heldout": (18, 24)}
    assert list(copied.parent.iterdir()) == [copied]


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    source = make_source(np.arange(99) % 3, side=128)  # 99 images of 49 KB, 4.9 MB in all
    tracemalloc.start()
    try:
        write_subset(source, plan({"train": 99}, labels=source.labels), tmp_path / "subset")
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_an_array_written_row_by_row_has_the_bytes_of_np_save(tmp_path):
    array = np.arange(24, dtype=np.uint16).reshape(4, 3, 2)
    with array_writer(tmp_path / "rows.npy", array.shape, np.uint16) as append:
        append(array[:1])
        append(array[1:])
    np.save(tmp_path / "whole.npy", array)
    assert (tmp_path / "rows.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


def test_a_picture_that_is_in_an_earlier_split_gives_way_to_a_spare_of_its_class(tmp_path):
    splits = plan({"train": 18, "heldout": 6})
    double = splits.chosen["heldout"][2]
    original = next(index for index in splits.chosen["train"] if LABELS[index] == LABELS[double])
    write_subset(make_source(doubles={double: original}), splits, tmp_path / "subset")
    items = read_json(tmp_path / "subset" / "manifest.json")["items"]
    train, heldout = items[:18], items[18:]
    assert [item["id"] for item in train] == [f"image-{index}" for index in splits.chosen["train"]]
    assert heldout[2]["id"] == f"image-{splits.spare[LABELS[double]][0]}"
    assert not {item["sha256"] for item in train} & {item["sha256"] for item in heldout}
    assert Subset.open(tmp_path / "subset").labels.tolist()[20] == LABELS[double]


def test_a_picture_in_two_splits_without_a_spare_is_refused(tmp_path):
    splits = plan({"train": 24, "heldout": 6})
    double, original = splits.chosen["heldout"][0], splits.chosen["train"][0]
    with pytest.raises(ParameterError, match=f"splits.heldout: the image image-{double} is also in split 'train'"):
        write_subset(make_source(doubles={double: original}), splits, tmp_path / "subset")
    assert list(tmp_path.iterdir()) == []


# reading


def test_a_split_is_a_view_of_its_images_and_labels(written):
    subset = Subset.open(written)
    images, labels = subset.split("heldout")
    assert images.shape == (6, 4, 4, 3) and images.dtype == np.uint8
    assert np.shares_memory(images, subset.images)
    assert (images == subset.images[18:]).all() and labels.tolist() == subset.labels[18:].tolist()
    assert subset.classes == CLASSES and subset.image_size == 4


def test_an_unknown_split_is_answered_with_those_there_are(written):
    with pytest.raises(FileError, match="'test'.*train, heldout"):
        Subset.open(written).split("test")


@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "manifest.json"])
def test_a_missing_or_cut_off_file_is_named_with_the_remedy(copied, name):
    content = (copied / name).read_bytes()
    for damaged in (content[:-1], content[:50], b""):
        (copied / name).write_bytes(damaged)
        if name == "manifest.json" and damaged == content[:-1]:
            continue  # only the newline at its end is gone
        with pytest.raises(FileError, match=f"{name}.*Make it anew."):
            Subset.open(copied, REMEDY)
    (copied / name).unlink()
    with pytest.raises(FileError, match=f"{name}: the file is missing.*Make it anew."):
        Subset.open(copied, REMEDY)


def test_a_header_that_lost_a_bracket_is_named_with_the_remedy(copied):
    content = (copied / "images.npy").read_bytes()
    (copied / "images.npy").write_bytes(content.replace(b"}", b" ", 1))
    with pytest.raises(FileError, match="images.npy.*damaged.*Make it anew."):
        Subset.open(copied, REMEDY)


def test_arrays_of_another_shape_or_type_than_the_manifest_says_are_refused(copied):
    np.save(copied / "images.npy", np.zeros((24, 5, 5, 3), dtype=np.uint8))
    with pytest.raises(FileError, match=r"images.npy: holds uint8 \[24, 5, 5, 3\].*\[24, 4, 4, 3\]"):
        Subset.open(copied, REMEDY)
    np.save(copied / "images.npy", np.zeros((24, 4, 4, 3), dtype=np.float32))
    with pytest.raises(FileError, match="images.npy: holds float32"):
        Subset.open(copied, REMEDY)


def test_labels_that_are_not_those_of_the_manifest_are_refused(copied):
    labels = np.load(copied / "labels.npy")
    np.save(copied / "labels.npy", (labels + 1) % 3)
    with pytest.raises(FileError, match="labels.npy"):
        Subset.open(copied, REMEDY)


@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "manifest.json", "prompts.jsonl"])
def test_whatever_byte_flips_the_file_is_named(tmp_path, name):
    texts = {"prompts.jsonl": "one\ntwo\n"}
    write_subset(make_source(), plan({"train": 18, "heldout": 6}), tmp_path / "subset", texts)

    def read():
        assert len(Subset.open(tmp_path / "subset").images) == 24 and len(subset_hash(tmp_path / "subset")) == 64
        assert read_subset_text(tmp_path / "subset", "prompts.jsonl") == "one\ntwo\n"

    check_every_flip_is_named(tmp_path / "subset" / name, read)


def test_a_text_that_a_subset_has_not_is_none_and_one_that_was_lost_is_named(tmp_path):
    write_subset(make_source(), plan({"train": 18}), tmp_path / "subset", {"prompts.jsonl": "one"})
    assert read_subset_text(tmp_path / "subset", "others.jsonl") is None
    (tmp_path / "subset" / "prompts.jsonl").unlink()
    with pytest.raises(FileError, match=f"prompts.jsonl: the file is missing.*{REMEDY}"):
        read_subset_text(tmp_path / "subset", "prompts.jsonl", REMEDY)


@pytest.mark.parametrize("name", ["images.npy", "labels.npy"])
def test_an_array_that_is_a_pipe_is_not_waited_for(copied, name):
    (copied / name).unlink()
    os.mkfifo(copied / name)
    with pytest.raises(FileError, match=f"{name}: this is no file"):
        Subset.open(copied)


KEYS = ("count", "image_size", "classes", "splits", "items", "sha256")


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("value", [None, 5, "five", [], {}, [[5]]])
def test_an_entry_of_the_manifest_that_is_missing_or_of_another_type_is_refused(copied, key, value):
    manifest = read_checked_json(copied / "manifest.json")
    changed = {name: entry for name, entry in manifest.items() if name != key} | ({} if value is None else {key: value})
    write_checked_json(copied / "manifest.json", changed)
    with pytest.raises(FileError, match=REMEDY):
        Subset.open(copied, REMEDY)


@pytest.mark.parametrize(
    "change", [{"kind": "tokens"}, {"splits": {"train": [0, 25]}}, {"splits": {"train": 18}}, {"items": [{}]}]
)
def test_a_manifest_that_cannot_be_right_is_refused(copied, change):
    write_checked_json(copied / "manifest.json", read_checked_json(copied / "manifest.json") | change)
    with pytest.raises(FileError, match="manifest.json.*Make it anew."):
        Subset.open(copied, REMEDY)


def test_the_hash_of_a_subset_is_that_of_its_manifest_and_tells_two_seeds_apart(written, tmp_path):
    assert subset_hash(written) == sha256_file(written / "manifest.json")
    write_subset(make_source(), plan({"train": 18, "heldout": 6}, seed=1), tmp_path / "other")
    assert subset_hash(tmp_path / "other") != subset_hash(written)
    with pytest.raises(FileError, match="manifest.json: the file is missing.*Make it anew."):
        subset_hash(tmp_path / "nowhere", REMEDY)


def test_all_of_mnist_goes_into_a_balanced_subset(tmp_path):
    source = mnist_source(28)
    everything = plan_subset(source.labels, source.classes, {"train": 4000, "heldout": 1000}, seed=0)
    write_subset(source, everything, tmp_path / "m")
    subset = Subset.open(tmp_path / "m")
    assert np.bincount(subset.split("train")[1]).tolist() == [400] * 10
    assert np.bincount(subset.split("heldout")[1]).tolist() == [100] * 10
    ids = [item["id"] for item in read_json(tmp_path / "m" / "manifest.json")["items"]]
    assert sorted(ids) == list(source.ids)
