"""A fixed subset of an image source: planned from the labels alone, written as arrays, read memory-mapped.

A subset is a directory of `images.npy` (uint8 [N, S, S, 3]), `labels.npy` (int64 [N]) and `manifest.json` (where each
image comes from). Every split is one contiguous range of it. The array files and manifests of token caches, caption caches
and sets of samples are handled here too: a manifest holds the sha256 of each file beside it and a checksum of itself, and
every reader compares them, so that a byte that flipped on a disk is told with the name of its file.
"""

import hashlib
import operator
import tokenize
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vapi_core.data.sources import ImageSource
from vapi_core.errors import FileError, ParameterError, quoted, shortened
from vapi_core.files import (
    atomic_path,
    read_checked_json,
    read_text,
    require_regular,
    require_sha256,
    sha256_file,
    write_checked_json,
)
from vapi_core.randomness import stream

MANIFEST = "manifest.json"
REMEDY = "To make it anew, run `dvc repro subset`."


@dataclass(frozen=True)
class SubsetPlan:
    """Which images of a source go where, as indices into the source."""

    seed: int
    chosen: dict[str, list[int]]  # split -> images in the order in which they are stored
    spare: list[list[int]]  # per class, the images in no split: they replace pictures that turn out to be doubles


def plan_subset(labels: np.ndarray, classes: Sequence[str], splits: Mapping[str, int], seed: int) -> SubsetPlan:
    """Chooses the images of every split, disjoint, with as many of each class as the counts allow.

    Where a count does not divide by the number of classes, the extra images go to classes in a seeded order that goes
    on from split to split, so that the sum over all splits is balanced too. The images of a split are in random order.
    A split's images depend on the splits before it, not on those after it.

    Args:
        labels: int [N], the class of every image of the source.
        splits: number of images by name of the split, each at least 1.

    Raises:
        ParameterError: a split takes more images of a class than there are left.
    """
    sizes = np.bincount(labels, minlength=len(classes))  # [C]
    by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(sizes)[:-1])
    queues = [stream(seed, "subset images", label).permutation(members) for label, members in enumerate(by_class)]
    class_order = stream(seed, "subset classes").permutation(len(classes))
    taken = np.zeros(len(classes), dtype=np.int64)  # [C]
    chosen: dict[str, list[int]] = {}
    dealt = 0  # extra images handed out so far
    for number, (name, count) in enumerate(splits.items()):
        share, extra = np.full(len(classes), count // len(classes)), count % len(classes)
        share[class_order.take(range(dealt, dealt + extra), mode="wrap")] += 1
        dealt += extra
        short = np.flatnonzero(taken + share > sizes)
        if short.size:
            label = short[0]
            raise ParameterError(
                f"subset.splits.{name}",
                f"{count} images are {share[label]} of class {quoted(classes[label])}, but the source has {sizes[label]} of "
                f"them and the splits before take {taken[label]}. Ask for fewer images.",
            )
        members = np.concatenate([queue[t : t + s] for queue, t, s in zip(queues, taken, share, strict=True)])
        chosen[name] = stream(seed, "subset order", number).permutation(members).tolist()
        taken += share
    return SubsetPlan(seed, chosen, [queue[t:].tolist() for queue, t in zip(queues, taken, strict=True)])


def write_subset(
    source: ImageSource, plan: SubsetPlan, directory: Path | str, texts: Mapping[str, str] | None = None
) -> None:
    """Loads the planned images one by one and writes the subset; memory does not grow with their number.

    Two splits never hold the same pixels: an image already seen in an earlier split gives way to a spare of its class.

    Args:
        texts: further files of the subset, by name, for `read_subset_text`.

    Raises:
        ParameterError: no spare is left for such an image.
        FileError: an image of the source cannot be read.
    """
    count, size = sum(map(len, plan.chosen.values())), source.image_size
    items: list[dict[str, str]] = []
    labels: list[int] = []
    splits: dict[str, list[int]] = {}
    spare = [iter(indices) for indices in plan.spare]
    split_of: dict[str, str] = {}  # sha256 of the pixels -> the split that holds them
    with atomic_path(directory) as temporary:
        temporary.mkdir(exist_ok=True)  # a killed process of the same id may have left one
        with array_writer(temporary / "images.npy", (count, size, size, 3), np.uint8) as append:
            for split, indices in plan.chosen.items():
                for index in indices:
                    index, image, sha256 = _load_new(source, index, spare, split, split_of)
                    append(image[None])
                    label = int(source.labels[index])
                    labels.append(label)
                    item = {"id": source.ids[index], "class": source.classes[label], "split": split, "sha256": sha256}
                    items.append(item | _further(source, index))
                splits[split] = [len(items) - len(indices), len(items)]
        np.save(temporary / "labels.npy", np.array(labels, dtype=np.int64))
        for name, text in (texts or {}).items():
            (temporary / name).write_text(text, encoding="utf-8", newline="")
        manifest = {
            "kind": "subset",
            "source": source.name,
            "seed": plan.seed,
            "image_size": size,
            "classes": list(source.classes),
            "splits": splits,
            "count": count,
            "items": items,
        }
        write_manifest(temporary, manifest, ("images.npy", "labels.npy", *(texts or {})))


def _further(source: ImageSource, index: int) -> dict[str, Any]:
    """What the manifest says of an image beside its id, class and split."""
    further: dict[str, Any] = {}
    if source.captions is not None:
        further["caption"] = source.captions[index]
    if source.annotations is not None:
        further["annotation"] = source.annotations[index]
    return further


def _load_new(
    source: ImageSource, index: int, spare: list[Iterator[int]], split: str, split_of: dict[str, str]
) -> tuple[int, np.ndarray, str]:
    """The image, or the first spare of its class whose pixels are in no other split: (index, image, sha256)."""
    planned = index
    while True:
        image = source.load(index)
        sha256 = hashlib.sha256(image.tobytes()).hexdigest()
        if split_of.setdefault(sha256, split) == split:
            return index, image, sha256
        replacement = next(spare[source.labels[planned]], None)
        if replacement is None:
            raise ParameterError(
                f"subset.splits.{split}",
                f"the image {source.ids[planned]} is also in split '{split_of[sha256]}' under another name, and class "
                f"{quoted(source.classes[source.labels[planned]])} has no other image left. Remove it or ask for fewer.",
            )
        index = replacement


@dataclass(frozen=True)
class Subset:
    """A subset on disk. `images` is a read-only memory map: copy the batch that is needed."""

    directory: Path
    images: np.ndarray  # uint8 [N, S, S, 3], RGB
    labels: np.ndarray  # int64 [N]
    classes: tuple[str, ...]
    image_size: int
    splits: dict[str, tuple[int, int]]  # name -> first image, one past the last
    captions: tuple[str, ...] | None = None  # [N], where the source has captions
    annotations: tuple[dict[str, Any], ...] | None = None  # [N], where it has annotations

    @classmethod
    def open(cls, directory: Path | str) -> "Subset":
        """Opens what `write_subset` wrote, after hashing its files again (1 GB in about a second).

        Raises:
            FileError: a file is missing or damaged, or the files do not belong together.
        """
        directory = Path(directory)
        path = directory / MANIFEST
        manifest = read_manifest(path, "subset", REMEDY)
        with entries_of(path, REMEDY):
            count, size, classes = (
                operator.index(manifest["count"]),
                operator.index(manifest["image_size"]),
                tuple(manifest["classes"]),
            )
            splits = read_splits(manifest)
            expected = [classes.index(item["class"]) for item in manifest["items"]]
            captioned = any("caption" in item for item in manifest["items"])
            captions = tuple(item["caption"] for item in manifest["items"]) if captioned else None
            annotated = any("annotation" in item for item in manifest["items"])
            annotations = tuple(item["annotation"] for item in manifest["items"]) if annotated else None
            images_sha256, labels_sha256 = (manifest["sha256"][name] for name in ("images.npy", "labels.npy"))
        images = open_array(directory / "images.npy", (count, size, size, 3), np.uint8, REMEDY, images_sha256)
        labels = np.array(open_array(directory / "labels.npy", (count,), np.int64, REMEDY, labels_sha256))
        if labels.tolist() != expected:
            raise FileError(directory / "labels.npy", "the labels are not those of the manifest.", REMEDY)
        return cls(directory, images, labels, classes, size, splits, captions, annotations)

    def split(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Views of one split: images uint8 [n, S, S, 3] and labels int64 [n].

        Raises:
            FileError: the subset has no such split.
        """
        part = find_split(self.directory, self.splits, name)
        return self.images[part], self.labels[part]


def subset_hash(directory: Path | str) -> str:
    """Hex sha256 of the manifest, which holds the hash of every image: equal for equal subsets.

    Raises:
        FileError: the manifest is missing or damaged.
    """
    path = Path(directory) / MANIFEST
    read_manifest(path, "subset", REMEDY)
    return sha256_file(path)


def read_subset_text(directory: Path | str, name: str) -> str | None:
    """A further file of a subset, as `write_subset` was given it; None if there was none of this name.

    Raises:
        FileError: the manifest or the file is missing or damaged.
    """
    path = Path(directory) / MANIFEST
    manifest = read_manifest(path, "subset", REMEDY)
    with entries_of(path, REMEDY):
        sha256 = manifest["sha256"].get(name)
    if sha256 is None:
        return None
    text = read_text(path.with_name(name), REMEDY)
    require_sha256(path.with_name(name), sha256, REMEDY)
    return text


def write_manifest(directory: Path, manifest: dict[str, Any], files: Iterable[str]) -> None:
    """Writes `manifest.json` with the sha256 of these files of the same directory, and a checksum of itself."""
    sha256 = {name: sha256_file(directory / name) for name in files}
    write_checked_json(directory / MANIFEST, manifest | {"sha256": sha256})


def read_manifest(path: Path, kind: str, remedy: str) -> dict[str, Any]:
    """Reads a manifest of this kind. Raises FileError where it is missing, damaged or of another kind."""
    manifest = read_checked_json(path, remedy)
    if manifest.get("kind") != kind:
        raise FileError(path, f'this is not a manifest of kind "{kind}".', remedy)
    return manifest


@contextmanager
def entries_of(path: Path, remedy: str) -> Iterator[None]:
    """Turns what goes wrong with the entries of a manifest, one that is missing or of another type, into a FileError."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileError(path, f"the manifest is damaged ({quoted(error)}).", remedy) from None


def read_splits(manifest: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """The table of splits of a manifest. Raises KeyError, TypeError or ValueError where it is damaged."""
    splits = {name: (operator.index(start), operator.index(stop)) for name, (start, stop) in manifest["splits"].items()}
    if not splits or not all(0 <= start < stop <= manifest["count"] for start, stop in splits.values()):
        raise ValueError("a split lies outside the array")
    return splits


def find_split(directory: Path, splits: Mapping[str, tuple[int, int]], name: str) -> slice:
    """The range of a split. Raises FileError, naming the splits there are, where there is none of that name."""
    if name not in splits:
        problem = f"there is no split {quoted(name)} in it, only {shortened(', '.join(splits))}."
        raise FileError(directory, problem, "See subset.splits in params.yaml.")
    return slice(*splits[name])


@contextmanager
def array_writer(path: Path, shape: tuple[int, ...], dtype: type[np.number]) -> Iterator[Callable[[np.ndarray], None]]:
    """Yields a function that appends rows [n, *shape[1:]] to a new .npy file; shape[0] rows must come in all.

    The bytes are those of `np.save`. The file is written in order and not through a memory map: pages of a map count
    as memory of the process until the kernel takes them back, and a full disk would kill the process with SIGBUS.
    """
    written = 0
    with open(path, "wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)

        def append(rows: np.ndarray) -> None:
            nonlocal written
            assert (rows.dtype, rows.shape[1:]) == (dtype, shape[1:]), f"{rows.dtype} {rows.shape} into {dtype} {shape}"
            file.write(np.ascontiguousarray(rows).data)
            written += len(rows)

        yield append
    assert written == shape[0], f"{written} rows came for an array of {shape}"


def open_array(
    path: Path, shape: tuple[int, ...], dtype: type[np.number], remedy: str, sha256: str | None
) -> np.ndarray:
    """Memory-maps a .npy file, read-only, after hashing it; once in a process, unless the file changes.

    Args:
        sha256: what the manifest says; None where rows are checked in another way (`vapi_core.data.partial`).

    Raises:
        FileError: the file is missing, damaged or cut off, or holds something else than the manifest says.
    """
    try:
        require_regular(path, remedy)
        array = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:
        raise FileError(path, "the file is missing.", remedy) from None
    except (OSError, EOFError, ValueError, tokenize.TokenError) as error:  # the header is Python source
        raise FileError(path, f"the file is damaged ({error}).", remedy) from None
    if array.shape != shape or array.dtype != dtype:
        expected = f"{np.dtype(dtype)} {list(shape)}"
        raise FileError(path, f"holds {array.dtype} {list(array.shape)}, the manifest says {expected}.", remedy)
    if sha256 is not None:
        require_sha256(path, sha256, remedy)
    return array
