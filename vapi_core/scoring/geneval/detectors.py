"""What looks at the images for GenEval: Mask2Former finds objects, CLIP ViT-L/14 names their color.

The official script runs Mask2Former (Swin-S, COCO instances) in mmdet 2; here it runs in transformers, with mmdet's
preprocessing and mmdet's reading of the output. transformers' own `post_process_instance_segmentation` would squash
every mask to 384 x 384 pixels on the way, and its preprocessor follows the checkpoint's configuration.

The published scores were made with the mmdet checkpoint `mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco`; transformers'
`facebook/mask2former-swin-small-coco-instance` is another training run of the same architecture. Scores of the two are
not the same number, so every result names its detector.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vapi_core.errors import FileError
from vapi_core.models.clip import LOADING_ERRORS, Clip
from vapi_core.models.weights import check_expansion, check_loaded, weights_sha256
from vapi_core.scoring.geneval.rules import COLORS, Detections

HUB_DETECTOR = "facebook/mask2former-swin-small-coco-instance"
COCO_NAMES = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, handbag,
tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard,
tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot,
hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, computer mouse,
tv remote, computer keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors,
teddy bear, hair drier, toothbrush
"""
COCO_CLASSES = tuple(name.strip() for name in COCO_NAMES.split(","))  # order and names of the official object_names.txt
SYNONYMS = {  # names that COCO and its derivatives give to the same classes
    "mouse": "computer mouse",
    "remote": "tv remote",
    "keyboard": "computer keyboard",
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
    "hair dryer": "hair drier",
}

SHORTEST, LONGEST, DIVISOR = 800, 1333, 32  # mmdet's test input: pixels
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
MAX_INSTANCES = 100  # of one image
CHUNK = 16  # masks brought to the image's size at once

UNIFORM = 0.8  # of the largest entropy: beyond, class probabilities say nothing
SPREAD = 1e-3  # of the class probabilities over queries and images: below, the detector does not look
CHECKED_IMAGES = 16
FEWEST_IMAGES = 8  # that show no object before that is held against the detector

TEMPLATES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")
COLOR_BATCH = 16


class Mask2Former:
    """Instance segmentation by transformers' Mask2Former.

    Args:
        source: a folder with `config.json` and weights, or the id of a hub repository that is in the local cache.
        classes: what the detector must know, no more and no less, in any order; names of COCO are translated.
        shortest, longest: limits of the input's sides in pixels.

    Raises:
        FileError: the model is missing or damaged, lacks weights, or has other classes.
    """

    def __init__(
        self,
        source: Path | str = HUB_DETECTOR,
        classes: Sequence[str] = COCO_CLASSES,
        device: torch.device | str = "cpu",
        shortest: int = SHORTEST,
        longest: int = LONGEST,
    ):
        from transformers import Mask2FormerForUniversalSegmentation
        from transformers.utils import cached_file

        self.source, self.device, self.shortest, self.longest = str(source), torch.device(device), shortest, longest
        loader: Any = Mask2FormerForUniversalSegmentation  # its types do not know output_loading_info
        try:
            folder = Path(str(cached_file(self.source, "config.json", local_files_only=True))).parent
            check_expansion(folder)
            model, loading = loader.from_pretrained(self.source, local_files_only=True, output_loading_info=True)
        except LOADING_ERRORS as error:
            problem = str(error).partition("\n")[0]
            remedy = f"Name a folder, or run `hf download {HUB_DETECTOR}` where there is a network."
            raise FileError(source, f"there is no Mask2Former that can be loaded ({problem}).", remedy) from None
        if missing := [*loading["missing_keys"], *loading["mismatched_keys"]]:
            raise FileError(source, f"{len(missing)} weights are missing or of another shape, {missing[0]} first.")
        check_loaded(model, folder)
        names = [model.config.id2label[i] for i in range(model.config.num_labels)]
        self.labels = tuple(SYNONYMS.get(name, name) for name in names)
        if mismatch := class_problem(self.labels, classes):
            raise FileError(source, mismatch, "GenEval needs a detector of its own classes.")
        self.model = model.to(self.device).eval().requires_grad_(False)
        self.name = f"Mask2Former {Path(self.source).name if Path(self.source).is_dir() else self.source}"
        self.name += f" ({weights_sha256(self.model)[:12]})"
        if (shortest, longest) != (SHORTEST, LONGEST):
            self.name += f" at {shortest}-{longest}"

    def outputs(self, images: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        """Images of one size -> class logits [B, Q, K + 1], the last one "no object", and mask logits [B, Q, h, w]."""
        pixels = torch.stack([self._input(image) for image in images]).to(self.device)
        with torch.inference_mode():
            output = self.model(pixel_values=pixels)
        return output.class_queries_logits.float(), output.masks_queries_logits.float()

    def _input(self, image: Image.Image) -> Tensor:
        """As mmdet: resized without antialiasing to whole levels, normalized, padded to the right and below."""
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].float()
        size = input_size(image.height, image.width, self.shortest, self.longest)
        pixels = F.interpolate(pixels, size, mode="bilinear", align_corners=False).round()[0]
        pixels = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        return F.pad(pixels, (0, -size[1] % DIVISOR, 0, -size[0] % DIVISOR))

    def detect(self, images: Sequence[Image.Image], minimum_score: float) -> list[Detections]:
        """What is in each image, with masks; boxes of `minimum_score` and less are left out."""
        found: dict[int, Detections] = {}
        for size in dict.fromkeys(image.size for image in images):
            members = [i for i, image in enumerate(images) if image.size == size]
            class_logits, mask_logits = self.outputs([images[i] for i in members])
            inner = input_size(size[1], size[0], self.shortest, self.longest)
            for i, classes, masks in zip(members, class_logits, mask_logits, strict=True):
                found[i] = instances(classes, masks, self.labels, inner, (size[1], size[0]), minimum_score)
        return [found[i] for i in range(len(images))]

    def check(self, images: Sequence[Image.Image], minimum_score: float) -> None:
        """Refuses a detector that cannot have been trained, judged by what it says about `images`.

        Raises:
            FileError: what it says about them is implausible.
        """
        probabilities, best = [], 0.0
        for image in images[:CHECKED_IMAGES]:
            class_logits, _ = self.outputs([image])
            probabilities.append(class_logits.softmax(-1).cpu())
            (found,) = self.detect([image], 0.0)
            best = max([best, *(float(boxes[:, 4].max()) for boxes in found.boxes.values())])
        if problem := score_problem(torch.cat(probabilities), best, minimum_score):
            raise FileError(
                self.source,
                f"this detector's scores are implausible: {problem}",
                "Its weights or configuration do not fit. If you think that the images are to blame, check it on "
                "photographs instead.",
            )


def class_problem(labels: Sequence[str], classes: Sequence[str]) -> str | None:
    """Why a detector's labels are not the classes that are needed; None if they are."""
    missing = [name for name in classes if name not in labels]
    others = [name for name in labels if name not in classes]
    if not missing and not others and len(labels) == len(classes):
        return None
    return (
        f"its {len(labels)} classes are not the {len(classes)} needed: {len(missing)} are missing ("
        f"{', '.join(missing[:3])}, ...), {len(others)} are unknown ({', '.join(others[:3])}, ...)."
    )


def score_problem(probabilities: Tensor, best: float, minimum_score: float) -> str | None:
    """Why class probabilities, [images, Q, K + 1], cannot be those of a trained detector; None if they can.

    Args:
        best: the highest score of anything found in the images.
    """
    if not bool(torch.isfinite(probabilities).all()):
        return "they are not numbers."
    entropy = float(torch.special.entr(probabilities).sum(-1).mean() / np.log(probabilities.shape[-1]))
    if entropy > UNIFORM:
        return f"its class probabilities are nearly uniform ({entropy:.0%} of the largest entropy)."
    if float(probabilities.flatten(0, 1).std(0).max()) < SPREAD:
        return "they are the same wherever it looks."
    if best <= minimum_score and len(probabilities) >= FEWEST_IMAGES:
        return f"nothing in {len(probabilities)} images scores more than {best:.3f}; {minimum_score} is needed."
    return None


def input_size(height: int, width: int, shortest: int = SHORTEST, longest: int = LONGEST) -> tuple[int, int]:
    """Height and width to which an image is scaled: as large as both limits allow, its ratio kept (mmcv's rule)."""
    scale = min(longest / max(height, width), shortest / min(height, width))
    return int(height * scale + 0.5), int(width * scale + 0.5)


def instances(
    class_logits: Tensor,
    mask_logits: Tensor,
    labels: Sequence[str],
    inner: tuple[int, int],
    size: tuple[int, int],
    minimum_score: float,
) -> Detections:
    """Objects from the raw output for one image, as mmdet reads it (MaskFormerFusionHead.instance_postprocess).

    Every pair of query and class competes; its score is the class probability times the mean probability inside the
    mask; the box is the mask's, its right and lower end one pixel outside.

    Args:
        class_logits: [Q, K + 1].
        mask_logits: [Q, h, w], of the padded input at a quarter of its size.
        inner: height and width of the input without padding.
        size: height and width of the image.
    """
    probabilities = class_logits.softmax(-1)[:, :-1].flatten()  # [Q * K]
    best, pairs = probabilities.topk(min(MAX_INSTANCES, len(probabilities)))
    possible = best > minimum_score  # the mask's factor is at most 1
    best, pairs = best[possible], pairs[possible]
    boxes: dict[str, list[np.ndarray]] = {}
    masks: dict[str, list[np.ndarray]] = {}
    padded = tuple(side + -side % DIVISOR for side in inner)
    for start in range(0, len(pairs), CHUNK):
        part = pairs[start : start + CHUNK]
        logits = F.interpolate(mask_logits[part // len(labels)][:, None], padded, mode="bilinear", align_corners=False)
        logits = logits[..., : inner[0], : inner[1]]
        logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)[:, 0]  # [n, H, W]
        inside = logits > 0
        certainty = (logits.sigmoid() * inside).sum((1, 2)) / (inside.sum((1, 2)) + 1e-6)
        scores = best[start : start + CHUNK] * certainty
        rows = zip(part.tolist(), scores.tolist(), inside.cpu().numpy(), strict=True)
        for pair, score, mask in rows:
            if score > minimum_score:
                name = labels[pair % len(labels)]
                boxes.setdefault(name, []).append(np.array([*mask_box(mask), score], np.float32))
                masks.setdefault(name, []).append(mask)
    return Detections({n: np.stack(b) for n, b in boxes.items()}, {n: np.stack(m) for n, m in masks.items()})


def mask_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """x1, y1, x2, y2 around a mask, bool [H, W], with x2 and y2 one pixel outside; zeros for an empty one."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


class ClipColors:
    """The color of an object's crop: the nearest of COLORS under CLIP, each the mean of three official sentences."""

    def __init__(self, clip: Clip):
        self.clip = clip
        self.name = f"CLIP {clip.name}"
        self._classifiers: dict[str, Tensor] = {}  # of a class: [colors, D]

    def __call__(self, name: str, crops: Sequence[Image.Image]) -> list[str]:
        """Class name and crops of its objects -> a color for each."""
        if name not in self._classifiers:
            texts = [template.format(color=color, name=name) for color in COLORS for template in TEMPLATES]
            sentences = self.clip.encode_texts(texts).unflatten(0, (len(COLORS), len(TEMPLATES)))
            self._classifiers[name] = F.normalize(sentences.mean(1), dim=-1)
        colors = []
        for start in range(0, len(crops), COLOR_BATCH):
            features = self.clip.encode_images(crops[start : start + COLOR_BATCH])
            colors += [COLORS[i] for i in (features @ self._classifiers[name].T).argmax(-1).tolist()]
        return colors
