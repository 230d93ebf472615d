"""Images to tokens: passes from a memory map into one array, against one image at a time into a file each."""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import authors
from benchmarks.measure import Results, flops, machine, matmul_rate, pairs, peak
from benchmarks.models import Setting, build_tokenizer, random_images, setting
from vapi_core.data.cache import TokenCache, write_token_cache
from vapi_core.data.images import encode_images, images_of_a_pass
from vapi_core.models.llamagen.tokenizer import Tokenizer

COUNT, QUICK_COUNT = 64, 6
HASH = "benchmark"


def ours(tokenizer: Tokenizer, images: np.ndarray, s: Setting, folder: Path) -> None:
    """As the stage `tokenize`."""
    batch = images_of_a_pass(s.image_size)
    starts = range(0, len(images), batch)
    write_token_cache(
        folder / "cache",
        (encode_images(tokenizer, images[start : start + batch], s.device, batch) for start in starts),
        np.zeros(len(images), np.int64),
        {"train": (0, len(images))},
        grid=s.generator.grid,
        codebook_size=s.tokenizer.codebook_size,
        tokenizer_sha256=HASH,
        subset_sha256=HASH,
    )


def benchmark(options: argparse.Namespace) -> Results:
    """Tokens of both sides compared, then the time of making them in pairs."""
    s = setting(options)
    tokenizer, count = build_tokenizer(s), QUICK_COUNT if options.quick else options.count or COUNT
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "images.npy", random_images(s, count))
        images = np.load(folder / "images.npy", mmap_mode="r")
        (folder / "files").mkdir()
        work = {
            "ours": flops(lambda: ours(tokenizer, images, s, folder)),
            "authors": flops(lambda: authors.tokenize(tokenizer, images, s.device, folder / "files")),
        }
        cached = TokenCache.open(folder / "cache", tokenizer_sha256=HASH).tokens
        files = np.concatenate([np.load(folder / "files" / f"{i}.npy") for i in range(count)])
        results: Results = {
            "setting": s.describe() | {"images": count},
            "machine": machine(s.device),
            "flops": work,
            "equal_tokens": float((cached == files).mean()),
        }
        if options.quick:
            return results
        rate = matmul_rate(s.device, tokenizer.quant_conv.weight.dtype)
        results |= pairs(
            lambda: ours(tokenizer, images, s, folder),
            lambda: authors.tokenize(tokenizer, images, s.device, folder / "files"),
            s.device,
            options.pairs,
        )
        results["matmul_flops_per_second"] = rate
        results["share_of_matmul_rate"] = {n: work[n] / t / rate for n, t in results["median_seconds"].items()}
        if options.growth:
            results["growth"] = growth(tokenizer, s, folder, count)
    return results


def growth(tokenizer: Tokenizer, s: Setting, folder: Path, count: int) -> list[Results]:
    """Peak memory as the number of images doubles, from a whole pass on: it should not grow."""
    rows, first = [], max(count, images_of_a_pass(s.image_size))
    for number in (first, 2 * first, 4 * first):
        path = folder / f"{number}.npy"
        np.save(path, random_images(s, number))
        images = np.load(path, mmap_mode="r")
        row: Results = {"quantity": "number_of_images", "value": number}
        row["ours"] = peak(lambda images=images: ours(tokenizer, images, s, folder), s.device)
        row["authors"] = peak(
            lambda images=images: authors.tokenize(tokenizer, images, s.device, folder / "files"), s.device
        )
        rows.append(row)
    return rows
