"""Where images come from: all sources by the names they have in params.yaml (`subset.source`).

A source is one function here and one line of SOURCES, which says whether its images have classes or captions, and which
other parameters it needs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vapi_core.data.captioned import captioned_folder_source, dataset_source, webdataset_source
from vapi_core.data.labelled import labelled_dataset_source, labelled_webdataset_source
from vapi_core.data.sources import ImageSource, folder_source, mnist_source
from vapi_core.data.subset import SubsetPlan, plan_subset
from vapi_core.scenes.source import plan_scenes

# of the parameters of section `subset`: the images, and which of them go where
Choose = Callable[[Any], tuple[ImageSource, SubsetPlan]]


@dataclass(frozen=True)
class Source:
    """One kind of source. At least one of the first two is given."""

    labelled: Choose | None = None  # for class to image
    captioned: Choose | None = None  # for text to image
    path: bool = True  # whether it lies on disk, where `path` says
    dataset: bool = False  # whether it needs `dataset`


def balanced(open_source: Callable[[Any], ImageSource]) -> Choose:
    """Splits of a source with classes balanced."""

    def choose(subset: Any) -> tuple[ImageSource, SubsetPlan]:
        source = open_source(subset)
        return source, plan_subset(source.labels, source.classes, subset.splits, subset.seed)

    return choose


def mnist(subset: Any) -> ImageSource:
    return mnist_source(subset.image_size)


def folder(subset: Any) -> ImageSource:
    return folder_source(subset.path, subset.image_size, exif_orientation=subset.exif_orientation)


def captioned_folder(subset: Any) -> ImageSource:
    return captioned_folder_source(subset.path, subset.image_size, exif_orientation=subset.exif_orientation)


def labelled_dataset(subset: Any) -> ImageSource:
    return labelled_dataset_source(
        subset.path,
        subset.image_size,
        split=subset.dataset.split,
        image_column=subset.dataset.image_column,
        label_column=subset.dataset.target_column,
        exif_orientation=subset.exif_orientation,
    )


def captioned_dataset(subset: Any) -> ImageSource:
    return dataset_source(
        subset.path,
        subset.image_size,
        split=subset.dataset.split,
        image_column=subset.dataset.image_column,
        caption_column=subset.dataset.target_column,
        exif_orientation=subset.exif_orientation,
    )


def labelled_webdataset(subset: Any) -> ImageSource:
    return labelled_webdataset_source(subset.path, subset.image_size, exif_orientation=subset.exif_orientation)


def captioned_webdataset(subset: Any) -> ImageSource:
    return webdataset_source(subset.path, subset.image_size, exif_orientation=subset.exif_orientation)


def scenes(subset: Any) -> tuple[ImageSource, SubsetPlan]:
    """Scenes are made for their split."""
    return plan_scenes(subset.splits, subset.image_size, subset.seed)


SOURCES: dict[str, Source] = {
    "mnist": Source(balanced(mnist), path=False),
    "folder": Source(balanced(folder)),
    "scenes": Source(captioned=scenes, path=False),
    "captioned-folder": Source(captioned=balanced(captioned_folder)),
    "dataset": Source(balanced(labelled_dataset), balanced(captioned_dataset), dataset=True),
    "webdataset": Source(balanced(labelled_webdataset), balanced(captioned_webdataset)),
}
