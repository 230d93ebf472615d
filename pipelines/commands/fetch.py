"""Downloads what a profile lacks and what may be downloaded: `vapi assets fetch`. Licences are shown, and asked for,
first.

The hub's files go where `huggingface_hub` puts them, or to the place that the params name. Files with an address go on
where an interrupted download was. Each is compared with the sha256 that its source gives; some give none.
"""

import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.commands.assets import params_of
from pipelines.config.assets import ADM, GENEVAL, HEADS, INCEPTION, VGG, Asset, assets_of, summary, table
from pipelines.frame.progress import progress
from vapi_core.errors import FileError, VapiError
from vapi_core.files import sha256_file
from vapi_core.models.perceptual import HEADS_FILES, VGG_FILE

FIDELITY = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0"
ADDRESSES = {  # source of an asset -> address, licence, and the first digits of the sha256 where the source gives them
    VGG: (
        f"https://download.pytorch.org/models/{VGG_FILE}",
        "BSD 3-Clause (torchvision); trained on ImageNet",
        "397923af",
    ),
    HEADS: (f"{FIDELITY}/{HEADS_FILES[1]}", "BSD 2-Clause (LPIPS)", ""),
    INCEPTION: (
        f"{FIDELITY}/weights-inception-2015-12-05-6726825d.pth",
        "Apache-2.0 (torch-fidelity); trained on ImageNet",
        "6726825d",
    ),
    ADM: (
        "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet/256/"
        "VIRTUAL_imagenet256_labeled.npz",
        "that of guided-diffusion, and of ImageNet, whose images are in it",
        "",
    ),
    GENEVAL: (
        "https://raw.githubusercontent.com/djghosh13/geneval/main/prompts/evaluation_metadata.jsonl",
        "that of djghosh13/geneval",
        "",
    ),
}
LICENSES = {  # of repositories of the hub, as their cards say; docs/licenses.md has more
    "FoundationVision/LlamaGen": "MIT",
    "deepseek-community/Janus-Pro-1B": "DeepSeek model agreement",
    "google/flan-t5-xl": "Apache-2.0",
    "facebook/mask2former-swin-small-coco-instance": '"other"; its code\'s page names CC BY-NC 4.0: no commercial use',
    "timm/vit_large_patch14_clip_224.openai": "Apache-2.0",
    "xswu/HPSv2": "Apache-2.0 (the package hpsv2)",
}
HUB = re.compile(r"Hugging Face repository (\S+?)(?:, file (\S+))?")
WHOLE = ["*.json", "*.safetensors", "*.model", "*.txt"]  # of a repository; other formats of the same weights stay away
CHUNK = 2**20
FULL_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Download:
    """A file with an address, or of the hub a file or a repository."""

    license: str
    address: str = ""
    sha256: str = ""  # its first digits
    repository: str = ""
    file: str | None = None  # of the repository; None: all that is needed of it
    target: Path | None = None  # None: the hub's cache

    def __str__(self) -> str:
        file = f", {self.file}" if self.file else ""
        source = self.address or f"https://huggingface.co/{self.repository}{file}"
        return f"{self.target or 'the cache of the hub'}\n  from     {source}\n  licence  {self.license}"


def download_of(asset: Asset) -> Download | None:
    """How an asset is got; None where it is the user's own, or asks for an account."""
    place = Path(asset.place)
    if asset.source in ADDRESSES:
        address, license, sha256 = ADDRESSES[asset.source]
        target = place / address.rpartition("/")[2] if asset.files else place
        return Download(license, address, sha256, target=target)
    if (found := HUB.fullmatch(asset.source)) is None:
        return None
    repository, file = found.groups()
    license = LICENSES.get(repository, f"see https://huggingface.co/{repository}")
    return Download(license, repository=repository, file=file, target=None if asset.hub else place)


def fetch(profile: str | None, agreed: Callable[[], bool]) -> int:
    """Downloads what is missing, once `agreed` says so; returns the exit code, 1 where something is missing still.

    Raises:
        VapiError: a source cannot be reached.
        FileError: what came is not what its source says.
    """
    params = params_of(profile)
    missing = [asset for asset in assets_of(params) if asset.state == "missing"]
    found = {asset: download_of(asset) for asset in missing}
    downloads = list(dict.fromkeys(download for download in found.values() if download is not None))
    if own := [asset for asset in missing if found[asset] is None]:
        print(f"To be had by yourself:\n{table(own)}\n")
    if downloads:
        print("\n".join(map(str, downloads)))
        if not agreed():
            return 1
        for download in downloads:
            print(f"{get(download)}: done", flush=True)
    left = [asset for asset in assets_of(params) if asset.state == "missing"]
    print(summary(params.profile, left))
    return 1 if left else 0


def get(download: Download) -> Path:
    """Downloads it; returns where it is.

    Raises:
        VapiError: the source cannot be reached.
        FileError: what came is not what its source says.
    """
    if download.address:
        assert download.target is not None
        return get_address(download.address, download.target, download.sha256)
    with reachable(f"the repository {download.repository} of the hub"):
        return get_hub(download)


def get_address(address: str, target: Path, sha256: str) -> Path:
    """Downloads a file, going on where an interrupted download was; see `get`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(address, headers={"Range": f"bytes={start}-"} if start else {})
    with reachable(address):
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                start = start if response.status == 206 else 0  # a server that knows no ranges begins anew
                total = start + int(response.headers["Content-Length"])
                with part.open("ab" if start else "wb") as file, progress(target.name, total, "bytes") as advance:
                    advance(start)
                    while chunk := response.read(CHUNK):
                        file.write(chunk)
                        advance(len(chunk))
        except urllib.error.HTTPError as error:
            if error.code != 416:  # which says that the part is all there is
                raise
            total = part.stat().st_size
    if part.stat().st_size != total:
        raise FileError(part, f"{address} broke off.", "Run the same command again: it goes on from there.")
    found = sha256_file(part)
    if not found.startswith(sha256):
        part.unlink()
        raise FileError(target, f"what {address} sent has the sha256 {found}, which should begin with {sha256}.")
    os.replace(part, target)
    if not sha256:
        print(f"{target}: its source gives no checksum; the sha256 is {found}")
    return target


def get_hub(download: Download) -> Path:
    """Downloads a file or a repository of the hub; see `get`."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, snapshot_download

    repository, file, target = download.repository, download.file, download.target
    if file is None:
        into: dict[str, Any] = {} if target is None else {"local_dir": target}
        folder = Path(snapshot_download(repository, allow_patterns=WHOLE, **into))
        for path in folder.rglob("*"):
            if path.is_file():
                check(path, path.resolve().name)  # the cache names files by their sha256
        return folder
    if target is None:
        path = Path(hf_hub_download(repository, file))
        return check(path, path.resolve().name)
    path = Path(hf_hub_download(repository, file, local_dir=target.parent))
    return check(path, get_hf_file_metadata(hf_hub_url(repository, file)).etag or "")


def check(path: Path, sha256: str) -> Path:
    """The path. Raises FileError where its content is not of the given hash; what is no sha256 says nothing."""
    if FULL_SHA256.fullmatch(sha256) and sha256_file(path) != sha256:
        raise FileError(
            path, "the content is not what the hub says.", "Remove the file and run the same command again."
        )
    return path


@contextmanager
def reachable(source: str) -> Iterator[None]:
    """Turns what a download or upload fails by into a VapiError that names the source."""
    import httpx
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except (HfHubHTTPError, httpx.HTTPError, urllib.error.URLError, TimeoutError, ConnectionError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise VapiError(f"{source} cannot be reached, or does not let us in: {reason}") from error
