"""Images with classes in the two forms in which ImageNet is passed on, besides a folder."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vapi_core.data.labelled import labelled_dataset_source, labelled_webdataset_source
from vapi_core.data.subset import Subset, plan_subset, write_subset
from vapi_core.errors import FileError, ParameterError

GREYS = (10, 200, 90, 60)


def picture(grey: int, side: int = 20) -> Image.Image:
    return Image.fromarray(np.full((side, side + 6, 3), grey, np.uint8))


def png(grey: int) -> bytes:
    file = io.BytesIO()
    picture(grey).save(file, "png")
    return file.getvalue()


def write_shard(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


# Data sets of Hugging Face


@pytest.fixture
def dataset():
    """Writes a data set of four images; the labels are given."""
    import datasets

    def write(path: Path, labels: list, feature=None):
        features = datasets.Features({"image": datasets.Image(), "label": feature or datasets.Value("int64")})
        rows = {"image": [picture(grey) for grey in GREYS], "label": labels}
        datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows, features)}).save_to_disk(path)
        return path

    return write


def read(path, **changes):
    options = {"split": "train", "image_column": "image", "label_column": "label"} | changes
    return labelled_dataset_source(path, 8, **options)


def test_classes_are_those_of_the_data_set_and_images_are_cropped_when_they_are_asked_for(dataset, tmp_path):
    import datasets

    source = read(dataset(tmp_path / "set", [1, 0, 2, 1], datasets.ClassLabel(names=["tench", "goldfish", "shark"])))
    assert source.classes == ("tench", "goldfish", "shark") and source.labels.tolist() == [1, 0, 2, 1]
    assert [source.load(i).mean() for i in range(4)] == list(GREYS) and source.load(0).shape == (8, 8, 3)


def test_classes_without_names_are_their_numbers(dataset, tmp_path):
    assert read(dataset(tmp_path / "set", [3, 0, 0, 3])).classes == ("0", "1", "2", "3")


def test_rows_without_a_class_and_labels_that_are_no_numbers_are_refused(dataset, tmp_path):
    import datasets

    with pytest.raises(FileError, match="2 images have no class, train/0000001 first"):
        read(dataset(tmp_path / "test", [0, -1, 1, -1]))
    with pytest.raises(ParameterError, match="holds no class numbers"):
        read(dataset(tmp_path / "text", list("abcd"), datasets.Value("string")))
    with pytest.raises(ParameterError, match="has no column 'fine_label', only image, label"):
        read(dataset(tmp_path / "set", [0, 1, 2, 3]), label_column="fine_label")


def test_rows_without_a_class_among_numbers_are_counted_whatever_the_type(dataset, tmp_path):
    import datasets

    kinds = {"names": datasets.ClassLabel(names=["a", "b"]), "int64": None, "int32": datasets.Value("int32")}
    for name, feature in kinds.items():
        with pytest.raises(FileError, match="1 images have no class, train/0000002 first"):
            read(dataset(tmp_path / name, [0, 1, None, 1], feature))
    with pytest.raises(ParameterError, match="holds no class numbers"):
        read(dataset(tmp_path / "lists", [[0], [1], None, [1]], datasets.List(datasets.Value("int64"))))


def test_ids_that_are_no_class_numbers_are_refused_and_no_names_made_for_all_below(dataset, tmp_path):
    with pytest.raises(FileError, match="the class of train/0000001 is 300000000, but there are only 4 images"):
        read(dataset(tmp_path / "set", [0, 300_000_000, 1, 2]))


def test_an_id_on_the_hub_that_cannot_be_reached_is_named_with_what_to_do(monkeypatch):
    import datasets

    def unreachable(name, revision):
        raise ConnectionError(f"cannot reach {name} at {revision}")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(FileError, match=r"cannot reach ILSVRC/imagenet-1k at v1\.0.*Is there a network"):
        read("ILSVRC/imagenet-1k@v1.0")


def test_a_balanced_subset_of_a_data_set_loads_only_the_images_it_holds(dataset, tmp_path):
    source = read(dataset(tmp_path / "set", [0, 1, 0, 1]))
    plan = plan_subset(source.labels, source.classes, {"train": 2}, seed=0)
    write_subset(source, plan, tmp_path / "subset")
    subset = Subset.open(tmp_path / "subset")
    assert sorted(subset.labels.tolist()) == [0, 1] and isinstance(subset.images, np.memmap)
    assert [image.mean() for image in subset.images] == [GREYS[i] for i in plan.chosen["train"]]


# Webdataset


def test_a_class_is_read_from_a_cls_or_a_json_file(tmp_path):
    write_shard(tmp_path / "b.tar", {"0.png": png(90), "0.json": b'{"label": 1}'})
    write_shard(tmp_path / "a.tar", {"x/0.png": png(10), "x/0.cls": b"2\n", "x/1.png": png(200), "x/1.cls": b"0"})
    source = labelled_webdataset_source(tmp_path, 8)
    assert source.ids == ("a/x/0", "a/x/1", "b/0")
    assert source.labels.tolist() == [2, 0, 1] and source.classes == ("0", "1", "2")
    assert [source.load(i).mean() for i in range(3)] == [10, 200, 90]


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"0.png": b""}, "0.tar/0: the sample has no class"),
        ({"0.png": b"", "0.cls": b"cat"}, "0.tar/0: the class cannot be read"),
        ({"0.png": b"", "0.json": b"{"}, "0.tar/0: the class cannot be read"),
        ({"0.cls": b"1"}, "0.tar/0: the sample has no image"),
        ({"0.png": b"", "0.cls": b"-1"}, "1 images have no class, 0/0 first"),
        ({"0.png": b"", "0.cls": str(2**70).encode()}, "0.tar/0: the class cannot be read .it has 22 digits"),
        ({"0.png": b"", "0.json": b'{"label": %d}' % (2**70)}, "0.tar/0: the class cannot be read .it has 22 digits"),
        ({"0.png": b"", "0.cls": b"1" * 5000}, "0.tar/0: the class cannot be read"),
        (
            {"0.png": b"", "0.json": b'{"label": 300000000}'},
            "the class of 0/0 is 300000000, but there are only 1 images",
        ),
        ({"0.png": b"", "0.json": b'{"label": true}'}, "0.tar/0: the sample has no class"),
        ({"0.png": b"", "0.json": b"[" * 100_000}, "0.tar/0: the class cannot be read .it is nested too deeply"),
        ({"0.png": b"", "0.cls": b"1" * (2**24 + 1)}, "0.cls: the file has 16,777,217 bytes"),
    ],
)
def test_a_sample_that_lacks_something_is_named(tmp_path, files, problem):
    write_shard(tmp_path / "0.tar", files)
    with pytest.raises(FileError, match=problem):
        labelled_webdataset_source(tmp_path, 8)
