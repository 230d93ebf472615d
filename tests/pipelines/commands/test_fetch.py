"""What is missing is downloaded if its licence was agreed to; sources are a server of this test's, or are played."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from pipelines.cli.__main__ import main
from pipelines.commands import fetch
from pipelines.config.assets import INCEPTION, assets_of
from pipelines.config.loading import check_params
from pipelines.config.profiles import compose, read_profile
from vapi_core.errors import FileError, VapiError

ROOT = Path(__file__).parents[3]
CONTENT = bytes(range(256)) * 20
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Ranges(BaseHTTPRequestHandler):
    """A server of one file that can begin in its middle; it keeps what was asked for."""

    asked: list[str | None] = []
    breaks_off = False

    def do_GET(self):
        begin = self.headers["Range"]
        self.asked.append(begin)
        start = int(begin.removeprefix("bytes=").rstrip("-")) if begin else 0
        self.send_response(206 if begin else 200 if start < len(CONTENT) else 416)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start:1000] if self.breaks_off else CONTENT[start:])

    def log_message(self, *_):
        pass


@pytest.fixture
def address(monkeypatch):
    monkeypatch.setattr(Ranges, "asked", [])
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with HTTPServer(("127.0.0.1", 0), Ranges) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/weights.pth"
        server.shutdown()


def test_a_download_that_broke_off_goes_on_where_it_was(address, tmp_path, monkeypatch):
    target = tmp_path / "assets/weights.pth"
    monkeypatch.setattr(Ranges, "breaks_off", True)
    with pytest.raises((FileError, VapiError)):
        fetch.get_address(address, target, SHA256[:8])
    assert not target.exists()
    monkeypatch.setattr(Ranges, "breaks_off", False)
    assert fetch.get_address(address, target, SHA256[:8]) == target
    assert target.read_bytes() == CONTENT and Ranges.asked == [None, "bytes=1000-"]
    assert [path.name for path in target.parent.iterdir()] == ["weights.pth"]


def test_what_is_not_what_its_source_says_is_not_kept(address, tmp_path):
    with pytest.raises(FileError, match=rf"sha256 {SHA256}, which should begin with 12345678"):
        fetch.get_address(address, tmp_path / "weights.pth", "12345678")
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_cannot_be_reached_is_told(tmp_path):
    with pytest.raises(VapiError, match="http://127.0.0.1:9/x cannot be reached"):
        fetch.get_address("http://127.0.0.1:9/x", tmp_path / "x", "")


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """A folder without assets, an empty hub cache, and what was asked of the hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *arguments: None)
    (tmp_path / "params.yaml").write_text(compose("llamagen-xl-c2i", ROOT))
    asked = []

    def download(repository, file, local_dir=None):
        asked.append((repository, file))
        path = Path(local_dir or tmp_path / "cache") / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(CONTENT)
        return str(path)

    class Metadata:
        etag = SHA256

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda url: Metadata)
    monkeypatch.setattr(fetch, "get_address", lambda address, target, sha256: asked.append((address, sha256)) or target)
    return asked


def test_nothing_is_downloaded_before_its_licence_was_agreed_to(empty, capsys, monkeypatch):
    monkeypatch.setattr("typer.confirm", lambda question: "licences" not in question)
    assert main(["assets", "fetch"]) == 1 and empty == []
    told = capsys.readouterr().out
    assert "To be had by yourself:\nmissing  assets/imagenet/train" in told
    assert "assets/c2i_XL_384.pt\n  from     https://huggingface.co/FoundationVision/LlamaGen, c2i_XL_384.pt" in told
    assert "  licence  MIT\n" in told and "trained on ImageNet" in told


def test_what_was_agreed_to_is_downloaded_to_where_the_params_look_for_it(empty, tmp_path, capsys):
    assert main(["assets", "fetch", "--yes"]) == 1  # ImageNet is missing still
    assert ("FoundationVision/LlamaGen", "c2i_XL_384.pt") in empty and ("xswu/HPSv2", "HPS_v2_compressed.pt") in empty
    assert (tmp_path / "assets/c2i_XL_384.pt").read_bytes() == CONTENT
    assert (f"{fetch.FIDELITY}/weights-vgg16-lpips.pth", "") in empty
    assert "of its files are missing" in capsys.readouterr().out


def test_what_the_hub_sends_is_compared_with_its_hash(empty, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda url: type("Metadata", (), {"etag": "0" * 64}))
    assert main(["assets", "fetch", "--yes"]) == 1
    assert "assets/vq_ds16_c2i.pt: the content is not what the hub says." in capsys.readouterr().err


@pytest.mark.parametrize("profile", ["llamagen-xl-c2i", "llamagen-xxl-c2i", "llamagen-xl-t2i", "janus-pro-1b"])
def test_all_but_images_of_a_full_size_profile_can_be_downloaded(profile):
    lacking = [a.parameter for a in assets_of(check_params(read_profile(profile, ROOT))) if not fetch.download_of(a)]
    assert set(lacking) <= {"subset.path"}


def test_inception_is_known_by_the_hash_in_its_name():
    address, _, sha256 = fetch.ADDRESSES[INCEPTION]
    assert sha256 in address
