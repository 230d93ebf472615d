"""Image files: turned as they are shown, bounded before they are decoded, and never waited for."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vapi_core.data import image_files
from vapi_core.data.captioned import captioned_folder_source, dataset_source, webdataset_source
from vapi_core.data.image_files import count_suffixes, is_image_name, read_rgb
from vapi_core.data.labelled import labelled_dataset_source, labelled_webdataset_source
from vapi_core.data.sources import folder_source
from vapi_core.errors import FileError

UPRIGHT = np.zeros((24, 16, 3), np.uint8)  # top half red, bottom left quarter blue
UPRIGHT[:12, :, 0] = UPRIGHT[12:, :8, 2] = 255
STORED = {  # what a camera stores, by the EXIF orientation that makes it UPRIGHT again
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.transpose(1, 0, 2),
    6: np.rot90(UPRIGHT),
    7: np.rot90(UPRIGHT, 2).transpose(1, 0, 2),
    8: np.rot90(UPRIGHT, -1),
}


def encode(pixels: np.ndarray, form: str = "PNG", orientation: int | None = None) -> bytes:
    exif = Image.Exif()
    if orientation is not None:
        exif[image_files.ORIENTATION] = orientation
    file = io.BytesIO()
    options = {"quality": 100} | ({"lossless": True} if form == "WEBP" else {})
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, form, exif=exif, **options)
    return file.getvalue()


def looks_like(image: Image.Image, expected: np.ndarray) -> bool:
    pixels = np.asarray(image).astype(int)
    return pixels.shape == expected.shape and np.abs(pixels - expected).mean() < 8  # JPEG blurs the edges


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", STORED)
def test_an_image_is_turned_as_its_exif_says_unless_it_is_to_be_as_stored(form, orientation):
    content = encode(STORED[orientation], form, orientation)
    assert looks_like(read_rgb(Path("x"), content), UPRIGHT)
    assert looks_like(read_rgb(Path("x"), content, exif_orientation=False), STORED[orientation])


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_there_is_none_of_turns_nothing(orientation):
    assert looks_like(read_rgb(Path("x"), encode(UPRIGHT, "JPEG", orientation)), UPRIGHT)


def test_damaged_exif_turns_nothing_and_leaves_the_image_readable():
    content = encode(UPRIGHT, "JPEG", 6)
    start = content.index(b"Exif\0\0") + 6
    for damage in (b"XX", b"\xff" * 12):
        damaged = content[:start] + damage + content[start + len(damage) :]
        assert looks_like(read_rgb(Path("x"), damaged), UPRIGHT)


def sideways(path: Path) -> list:
    """A sideways photograph in every form in which images come; makes the source that reads it."""
    import datasets

    content = encode(STORED[6], "JPEG", 6)
    (path / "classes" / "a").mkdir(parents=True)
    (path / "classes" / "a" / "x.jpg").write_bytes(content)
    (path / "captions").mkdir()
    (path / "captions" / "x.jpg").write_bytes(content)
    (path / "captions" / "x.txt").write_text("a")
    (path / "tars").mkdir()
    with tarfile.open(path / "tars" / "0.tar", "w") as archive:
        for name, data in (("x.jpg", content), ("x.txt", b"a"), ("x.cls", b"0")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    features = datasets.Features(
        {"image": datasets.Image(), "text": datasets.Value("string"), "label": datasets.Value("int64")}
    )
    rows = {"image": [{"bytes": content, "path": None}], "text": ["a"], "label": [0]}
    datasets.Dataset.from_dict(rows, features).save_to_disk(path / "set")
    labelled = {"split": "train", "image_column": "image", "label_column": "label"}
    return [
        lambda **o: folder_source(path / "classes", 16, **o),
        lambda **o: captioned_folder_source(path / "captions", 16, **o),
        lambda **o: webdataset_source(path / "tars", 16, **o),
        lambda **o: labelled_webdataset_source(path / "tars", 16, **o),
        lambda **o: dataset_source(path / "set", 16, **o),
        lambda **o: labelled_dataset_source(path / "set", 16, **labelled, **o),
    ]


def test_every_source_turns_images_and_can_leave_them_as_stored(tmp_path):
    for make in sideways(tmp_path):
        assert looks_like(Image.fromarray(make().load(0)), UPRIGHT[4:20])
        assert looks_like(Image.fromarray(make(exif_orientation=False).load(0)), np.rot90(UPRIGHT)[:, 4:20])


@pytest.mark.parametrize(
    ("suffix", "form"),
    [
        ("gif", "GIF"),
        ("jfif", "JPEG"),
        ("TIF", "TIFF"),
        ("tiff", "TIFF"),
        ("ppm", "PPM"),
        ("jpe", "JPEG"),
        ("png", "PNG"),
    ],
)
def test_what_pillow_reads_is_taken_for_an_image_by_any_of_its_names(tmp_path, suffix, form):
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(UPRIGHT).convert("P" if form == "GIF" else "RGB").save(path, form)
    assert is_image_name(path.name) and looks_like(read_rgb(path), UPRIGHT)


@pytest.mark.parametrize("name", ["x.eps", "x.pdf", "x.txt", "x.heic", "png", "x"])
def test_documents_and_what_cannot_be_read_are_no_images(name):
    assert not is_image_name(name)


def test_a_document_under_the_name_of_an_image_is_not_opened(tmp_path):
    Image.fromarray(UPRIGHT).save(tmp_path / "x.eps")
    (tmp_path / "x.eps").rename(tmp_path / "x.png")  # Pillow would start Ghostscript
    with pytest.raises(FileError, match="x.png: the file cannot be read as an image"):
        read_rgb(tmp_path / "x.png")


def test_files_are_counted_by_their_endings_the_most_frequent_first():
    counts = count_suffixes(["a.heic", "b.txt", "c.HEIC", "README"])
    assert counts == {".heic": 2, ".txt": 1, "without a suffix": 1} and next(iter(counts)) == ".heic"


def test_an_image_of_169_million_pixels_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    Image.new("1", (13000, 13000)).save(tmp_path / "big.png")
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("pixels were decoded"))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda image: pytest.fail("pixels were decoded"))
    with pytest.raises(
        FileError, match=r"big\.png: the image has 13000 x 13000 pixels, 169 million; at most 89 million"
    ):
        read_rgb(tmp_path / "big.png")


def test_a_jpeg_beyond_the_bound_is_decoded_smaller_if_that_leaves_enough_pixels(monkeypatch):
    photograph = encode(np.repeat(np.repeat(UPRIGHT, 8, 0), 8, 1), "JPEG")  # 192 by 128
    monkeypatch.setattr(image_files, "MOST_PIXELS", 10_000)
    assert read_rgb(Path("x"), photograph, shorter_side=64).size == (64, 96)
    for needed in (65, None):
        with pytest.raises(FileError, match="x: the image has 128 x 192 pixels"):
            read_rgb(Path("x"), photograph, shorter_side=needed)


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path, kind):
    path = tmp_path / "x.png"
    {"pipe": os.mkfifo, "folder": os.mkdir, "device": lambda p: p.symlink_to("/dev/zero")}[kind](path)
    with pytest.raises(FileError, match="x.png: this is no file, but a folder, a pipe or a device"):
        read_rgb(path)


def test_an_image_that_is_missing_is_said_to_be(tmp_path):
    with pytest.raises(FileError, match="x.png: the image is missing"):
        read_rgb(tmp_path / "x.png")
