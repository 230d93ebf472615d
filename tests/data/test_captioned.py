import io
import json
import os
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from vapi_core.data import shards
from vapi_core.data.captioned import captioned_folder_source, dataset_source, webdataset_source
from vapi_core.data.subset import Subset, plan_subset, write_subset
from vapi_core.errors import FileError, ParameterError

COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def png(color: str, size: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), COLORS[color]).save(file, "PNG")
    return file.getvalue()


def seen(source, index: int) -> str:
    """The colour of an image."""
    return next(name for name, rgb in COLORS.items() if source.load(index)[0, 0].tolist() == list(rgb))


# A folder


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    (root / "more").mkdir(parents=True)
    (root / "1.png").write_bytes(png("red"))
    (root / "more" / "2.PNG").write_bytes(png("blue"))
    (root / ".cache.png").write_bytes(b"what a file manager leaves")
    return root


def write_lines(folder: Path, *rows: object) -> None:
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")


@pytest.mark.parametrize("keys", [("file_name", "text"), ("image_path", "caption"), ("image", "caption")])
def test_captions_come_from_a_file_of_lines_whose_order_is_kept(folder, keys):
    write_lines(
        folder,
        dict(zip(keys, ("more/2.PNG", "a blue square"), strict=True)),
        dict(zip(keys, ("./1.png", "red"), strict=True)),
    )
    source = captioned_folder_source(folder, 8)
    assert source.captions == ("a blue square", "red") and source.ids == ("more/2.PNG", "1.png")
    assert [seen(source, i) for i in range(2)] == ["blue", "red"]
    assert source.classes == ("image",) and source.labels.tolist() == [0, 0]


def test_captions_come_from_a_table_with_quoted_commas(folder):
    (folder / "captions.csv").write_text('file_name,caption\n1.png,"red, all red"\nmore/2.PNG,blue\n')
    assert captioned_folder_source(folder, 8).captions == ("red, all red", "blue")


def test_captions_come_from_a_text_file_beside_each_image(folder):
    (folder / "1.txt").write_text(" a red square\n")
    (folder / "more" / "2.txt").write_text("un carré bleu", encoding="utf-8")
    source = captioned_folder_source(folder, 8)
    assert source.captions == ("a red square", "un carré bleu") and seen(source, 1) == "blue"


def test_several_captions_of_one_image_are_several_items(folder):
    rows = [
        {"image": image, "caption": caption}
        for image, caption in [("1.png", "red"), ("more/2.PNG", "b"), ("1.png", "r")]
    ]
    write_lines(folder, *rows)
    source = captioned_folder_source(folder, 8)
    assert source.ids == ("1.png", "more/2.PNG", "1.png#2") and seen(source, 2) == "red"


def test_images_without_caption_and_captions_without_image_are_counted_and_named(folder):
    for i in range(3, 8):
        (folder / f"{i}.png").write_bytes(png("green"))
    (folder / "1.txt").write_text("red")
    with pytest.raises(FileError, match=r"6 images have no caption: 3.png, 4.png, 5.png, \.\.\."):
        captioned_folder_source(folder, 8)
    write_lines(folder, {"image": "1.png", "caption": "red"}, {"image": "gone.png", "caption": "?"})
    with pytest.raises(FileError, match=r"captions.jsonl: 1 captions belong to images that are not there: gone.png\."):
        captioned_folder_source(folder, 8)


def test_an_empty_caption_is_named(folder):
    write_lines(folder, {"image": "1.png", "caption": " "}, {"image": "more/2.PNG", "caption": "blue"})
    with pytest.raises(FileError, match="1 captions are empty: 1.png"):
        captioned_folder_source(folder, 8)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("captions.jsonl", '{"image": "1.png", "caption": "red"}\n{', "damaged"),
        ("captions.jsonl", '{"image": "1.png", "caption": "red"}\n\n[1]', "line 3 does not hold an image"),
        ("captions.jsonl", '{"image": "1.png", "caption": ["red", "r"]}', "line 1 does not hold .* a caption"),
        ("captions.csv", "file_name,label\n1.png,red\n", "line 2 does not hold .* a caption"),
        ("captions.csv", "file_name,caption\n1.png\n", "line 2 does not hold .* a caption"),
        ("captions.jsonl", b"\xff\xfe", "damaged"),
        ("captions.jsonl", "", "there are no captions"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(folder, name, content, problem):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(FileError, match=problem):
        captioned_folder_source(folder, 8)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "txt"])
def test_a_byte_order_mark_is_no_part_of_the_first_caption(folder, kind):
    mark, rows = "\ufeff", [{"file_name": "1.png", "text": "red"}, {"file_name": "more/2.PNG", "text": "blue"}]
    if kind == "jsonl":
        (folder / "captions.jsonl").write_text(mark + "\n".join(map(json.dumps, rows)), encoding="utf-8")
    elif kind == "csv":
        (folder / "captions.csv").write_text(f"{mark}file_name,text\r\n1.png,red\r\nmore/2.PNG,blue\r\n", "utf-8")
    else:
        (folder / "1.txt").write_text(f"{mark}red\r\n", encoding="utf-8")
        (folder / "more" / "2.txt").write_text("blue", encoding="utf-8")
    source = captioned_folder_source(folder, 8)
    assert source.captions == ("red", "blue") and source.passed_over == {}


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_a_line_separator_inside_of_a_caption_stays_there(folder, separator):
    caption = f"a{separator}red square"
    rows = [{"file_name": "1.png", "text": caption}, {"file_name": "more/2.PNG", "text": "blue"}]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "captions.jsonl").write_text(lines, encoding="utf-8")
    assert captioned_folder_source(folder, 8).captions == (caption, "blue")
    (folder / "captions.jsonl").unlink()
    (folder / "captions.csv").write_text(f"file_name,text\n1.png,{caption}\nmore/2.PNG,blue\n", encoding="utf-8")
    assert captioned_folder_source(folder, 8).captions == (caption, "blue")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (rb'{"file_name": "1.png", "text": "a \ud83d cat"}', r"\(line 2: it holds half of a character"),
        (b'{"file_name": "1.png", "text": "caf\xe9"}', r"\(line 2 is not UTF-8"),
        (b"[" * 100_000, r"\(line 2: it is nested too deeply\)"),
    ],
)
def test_a_line_that_no_manifest_could_hold_is_named_before_any_image_is_read(folder, line, problem):
    (folder / "captions.jsonl").write_bytes(b'{"file_name": "1.png", "text": "red"}\n' + line + b"\n")
    (folder / "1.png").write_bytes(b"no image")
    with pytest.raises(FileError, match=r"captions\.jsonl: the file is damaged " + problem):
        captioned_folder_source(folder, 8)


def test_a_line_of_a_table_is_counted_in_the_file_and_not_in_rows(folder):
    (folder / "captions.csv").write_text('file_name,text\n1.png,"two\nlines"\nmore/2.PNG\n')
    with pytest.raises(FileError, match="line 4 does not hold"):
        captioned_folder_source(folder, 8)


@pytest.mark.parametrize("name", ["captions.jsonl", "captions.csv", "1.txt"])
def test_captions_in_a_pipe_are_refused_and_not_waited_for(folder, name):
    os.mkfifo(folder / name)
    with pytest.raises(FileError, match=f"{name}: this is no file"):
        captioned_folder_source(folder, 8)


def test_what_is_neither_image_nor_caption_is_counted(folder):
    write_lines(folder, {"file_name": "1.png", "text": "red"}, {"file_name": "more/2.PNG", "text": "blue"})
    for name in ("3.heic", "more/4.heic", "1.txt"):
        (folder / name).write_text("?")
    assert captioned_folder_source(folder, 8).passed_over == {".heic": 2, ".txt": 1}


def test_an_image_whose_name_is_not_utf8_is_refused(folder):
    write_lines(folder, {"file_name": "1.png", "text": "red"}, {"file_name": "more/2.PNG", "text": "blue"})
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png")).write_bytes(png("red"))
    with pytest.raises(FileError, match=r"the name caf\\xe9\.png in it is not UTF-8"):
        captioned_folder_source(folder, 8)


def test_a_folder_that_is_missing_or_has_no_captions_is_told_the_layout(folder, tmp_path):
    for path in (folder, tmp_path / "nowhere"):
        with pytest.raises(FileError, match=r"Expected layout: .*captions.jsonl"):
            captioned_folder_source(path, 8)


def test_an_unreadable_image_is_named_when_it_is_loaded(folder):
    (folder / "1.png").write_bytes(b"no image")
    write_lines(folder, {"image": "1.png", "caption": "red"}, {"image": "more/2.PNG", "caption": "blue"})
    source = captioned_folder_source(folder, 8)
    with pytest.raises(FileError, match="1.png: the file cannot be read as an image"):
        source.load(0)


def test_a_subset_of_a_captioned_source_keeps_the_captions(folder, tmp_path):
    write_lines(folder, {"image": "1.png", "caption": "red"}, {"image": "more/2.PNG", "caption": "blue"})
    source = captioned_folder_source(folder, 8)
    write_subset(source, plan_subset(source.labels, source.classes, {"train": 1, "heldout": 1}, 0), tmp_path / "subset")
    subset = Subset.open(tmp_path / "subset")
    colors = ["red" if image[0, 0, 0] else "blue" for image in subset.images]
    assert list(subset.captions or ()) == colors and sorted(colors) == ["blue", "red"]


# Webdataset


def write_shard(path: Path, *files: tuple[str, bytes]) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def sample(key: str, color: str, **extra: object) -> list[tuple[str, bytes]]:
    return [
        (f"{key}.jpg", png(color)),
        (f"{key}.txt", f"{color} from the web".encode()),
        (
            f"{key}.json",
            json.dumps({"caption": f"{color} caption", "top_caption": f"a {color} square"} | extra).encode(),
        ),
    ]


def test_samples_of_all_shards_are_found_by_shard_and_key_and_read_where_they_lie(tmp_path):
    write_shard(tmp_path / "00001.tar", *sample("000010000", "blue"))
    write_shard(tmp_path / "00000.tar", *sample("000000000", "red"), *sample("000000001", "green"))
    source = webdataset_source(tmp_path, 8)
    assert source.ids == ("00000/000000000", "00000/000000001", "00001/000010000")
    assert [seen(source, i) for i in (2, 0, 1)] == ["blue", "red", "green"]
    assert source.captions == ("red from the web", "green from the web", "blue from the web")


def test_the_caption_is_the_entry_of_the_json_that_was_asked_for_or_without_a_text_file_its_caption(tmp_path):
    write_shard(tmp_path / "0.tar", *sample("0", "red"))
    assert webdataset_source(tmp_path, 8, caption_key="top_caption").captions == ("a red square",)
    image, _, about = sample("0", "red")
    write_shard(tmp_path / "0.tar", image, about)
    assert webdataset_source(tmp_path, 8).captions == ("red caption",)


def test_samples_without_image_or_caption_are_counted_and_named(tmp_path):
    write_shard(tmp_path / "0.tar", *sample("a", "red"), ("b.txt", b"lost"), ("c.json", b"{}"))
    with pytest.raises(FileError, match="2 samples have no image: 0/b, 0/c"):
        webdataset_source(tmp_path, 8)
    write_shard(tmp_path / "0.tar", *sample("a", "red"), ("b.png", png("red")), *sample("c", "red", top_caption=None))
    with pytest.raises(FileError, match="1 samples have no caption: 0/b"):
        webdataset_source(tmp_path, 8)
    with pytest.raises(FileError, match="2 samples have no caption: 0/b, 0/c"):
        webdataset_source(tmp_path, 8, caption_key="top_caption")


@pytest.mark.parametrize("count", [2, 3])
def test_a_shard_of_archives_that_were_joined_gives_the_samples_of_all(tmp_path, count):
    parts = []
    for i, color in zip(range(count), COLORS, strict=False):
        write_shard(tmp_path / "part", *sample(str(i), color))
        parts.append((tmp_path / "part").read_bytes())
    (tmp_path / "0.tar").write_bytes(b"".join(parts))  # as `cat` does
    source = webdataset_source(tmp_path, 8)
    assert source.ids == tuple(f"0/{i}" for i in range(count))
    assert [seen(source, i) for i in range(count)] == list(COLORS)[:count]


def test_archives_that_were_joined_far_apart_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "CHUNK", 1536)
    write_shard(tmp_path / "part", *sample("b", "blue"))
    write_shard(tmp_path / "0.tar", *sample("a", "red"))
    for zeros in (0, 512, 5 * 1536):
        joined = (tmp_path / "0.tar").read_bytes() + bytes(zeros) + (tmp_path / "part").read_bytes()
        (tmp_path / "1.tar").write_bytes(joined)
        source = webdataset_source(tmp_path, 8)
        assert source.ids == ("0/a", "1/a", "1/b") and seen(source, 2) == "blue"


def test_what_follows_an_archive_and_is_none_is_told(tmp_path):
    write_shard(tmp_path / "0.tar", *sample("b", "blue"))
    cut_off = (tmp_path / "0.tar").read_bytes()[:700]
    write_shard(tmp_path / "0.tar", *sample("a", "red"))
    whole = (tmp_path / "0.tar").read_bytes()
    for rest in (b"what a failed download leaves" * 40, cut_off):
        (tmp_path / "0.tar").write_bytes(whole + rest)
        with pytest.raises(FileError, match="0.tar: the shard is damaged or cut off"):
            webdataset_source(tmp_path, 8)


def test_texts_in_a_shard_are_bounded_and_refused_with_their_name(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "LONGEST_TEXT", 1000)
    for name, content, problem in (
        ("a.txt", b"x" * 1001, "a.txt: the file has 1,001 bytes"),
        ("a.txt", b"caf\xe9", "a.txt: the file is damaged .line 1 is not UTF-8"),
        ("a.json", rb'{"caption": "\ud83d"}', "a.json: the file is damaged .it holds half of a character"),
    ):
        write_shard(tmp_path / "0.tar", ("a.png", png("red")), (name, content))
        with pytest.raises(FileError, match=problem):
            webdataset_source(tmp_path, 8)
    monkeypatch.undo()
    write_shard(tmp_path / "0.tar", ("a.png", png("red")), ("a.json", b"[" * 100_000))
    with pytest.raises(FileError, match="a.json: the file is damaged .it is nested too deeply"):
        webdataset_source(tmp_path, 8)
    write_shard(tmp_path / "0.tar", ("a.png", png("red")), ("a.txt", b"\xef\xbb\xbfa cat"))
    assert webdataset_source(tmp_path, 8).captions == ("a cat",)


def test_a_name_in_a_shard_that_is_not_utf8_is_refused(tmp_path):
    write_shard(tmp_path / "0.tar", *sample(os.fsdecode(b"caf\xe9"), "red"))
    with pytest.raises(FileError, match=r"0\.tar: the name caf\\xe9\.jpg in it is not UTF-8"):
        webdataset_source(tmp_path, 8)


def test_shards_that_are_compressed_are_not_passed_over_in_silence(tmp_path):
    write_shard(tmp_path / "0.tar", *sample("a", "red"))
    for name in ("0.tar.json", "0_stats.json", "0.parquet"):  # what img2dataset leaves beside a shard
        (tmp_path / name).write_text("{}")
    assert webdataset_source(tmp_path, 8).ids == ("0/a",)
    for name in ("1.tar.gz", "2.TGZ"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(FileError, match="2 shards are compressed, 1.tar.gz first"):
        webdataset_source(tmp_path, 8)


def test_a_shard_that_is_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "0.tar")
    with pytest.raises(FileError, match="0.tar: this is no file"):
        webdataset_source(tmp_path, 8)


def test_a_file_that_comes_twice_in_a_shard_is_named(tmp_path):
    write_shard(tmp_path / "0.tar", *sample("a", "red"), ("a.jpg", png("blue")))
    with pytest.raises(FileError, match="0.tar: the file a.jpg comes twice"):
        webdataset_source(tmp_path, 8)


def test_a_shard_that_is_cut_off_or_no_tar_file_is_named(tmp_path):
    write_shard(tmp_path / "0.tar", *sample("a", "red"), *sample("b", "red"))
    content = (tmp_path / "0.tar").read_bytes()
    for damaged in (content[:1300], content[:700], b"no tar file" * 100, b""):
        (tmp_path / "0.tar").write_bytes(damaged)
        with pytest.raises(FileError, match="0.tar: the shard is damaged or cut off"):
            webdataset_source(tmp_path, 8)


def test_a_folder_without_shards_and_a_json_file_that_is_none_are_named(tmp_path):
    with pytest.raises(FileError, match="no .tar files"):
        webdataset_source(tmp_path, 8)
    write_shard(tmp_path / "0.tar", ("a.png", png("red")), ("a.json", b"{"))
    with pytest.raises(FileError, match="a.json: the file is damaged"):
        webdataset_source(tmp_path, 8)


def test_an_unreadable_image_in_a_shard_is_named_when_it_is_loaded(tmp_path):
    write_shard(tmp_path / "0.tar", ("a.png", b"no image"), ("a.txt", b"red"))
    with pytest.raises(FileError, match="0.tar/0/a: the file cannot be read as an image"):
        webdataset_source(tmp_path, 8).load(0)


# Data sets of Hugging Face


@pytest.fixture
def rows():
    return {"image": [Image.open(io.BytesIO(png(c))) for c in COLORS], "text": [f"a {c} square" for c in COLORS]}


def test_a_saved_data_set_is_read(tmp_path, rows):
    import datasets

    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"test": datasets.Dataset.from_dict(rows)}).save_to_disk(tmp_path / "splits")
    for path, split in ((tmp_path / "one", "train"), (tmp_path / "splits", "test")):
        source = dataset_source(path, 8, split=split)
        assert source.captions == ("a red square", "a green square", "a blue square")
        assert source.ids[1] == f"{split}/000001" and [seen(source, i) for i in (2, 0)] == ["blue", "red"]


def test_a_folder_of_parquet_files_is_read(tmp_path, rows, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "set" / "train-00000-of-00001.parquet")
    source = dataset_source(tmp_path / "set", 8)
    assert source.captions == ("a red square", "a green square", "a blue square") and seen(source, 1) == "green"


def test_a_data_set_without_the_split_the_column_or_a_caption_is_told_so(tmp_path, rows):
    import datasets

    datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows)}).save_to_disk(tmp_path / "set")
    with pytest.raises(FileError, match="no split 'test' in it, only train"):
        dataset_source(tmp_path / "set", 8, split="test")
    with pytest.raises(ParameterError, match="no column 'caption', only image, text"):
        dataset_source(tmp_path / "set", 8, caption_column="caption")
    with pytest.raises(ParameterError, match="'text' of .* does not hold images"):
        dataset_source(tmp_path / "set", 8, image_column="text")
    datasets.Dataset.from_dict(rows | {"text": ["red", None, " "]}).save_to_disk(tmp_path / "gaps")
    with pytest.raises(FileError, match="2 rows have no caption: train/000001, train/000002"):
        dataset_source(tmp_path / "gaps", 8)
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(FileError, match=path.name):
            dataset_source(path, 8)


def test_a_missing_and_an_unreadable_image_of_a_data_set_are_named_when_they_are_loaded(tmp_path):
    import datasets

    images = [{"bytes": b"no image", "path": None}, None]
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    datasets.Dataset.from_dict({"image": images, "text": ["a", "b"]}, features).save_to_disk(tmp_path / "set")
    source = dataset_source(tmp_path / "set", 8)
    with pytest.raises(FileError, match="train/000000: the file cannot be read as an image"):
        source.load(0)
    with pytest.raises(FileError, match="train/000001: the row has no image"):
        source.load(1)
