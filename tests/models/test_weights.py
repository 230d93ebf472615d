"""Weights that a model cannot hold are refused by name before they are copied, or before they are read at all."""

import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.tiny import tiny_generator
from vapi_core.errors import FileError
from vapi_core.models.checkpoints import load_model, save_model
from vapi_core.models.classifier import PlainClassifier, load_classifier, save_classifier
from vapi_core.models.llamagen.checkpoints import import_official
from vapi_core.models.perceptual import LPIPS, load_lpips
from vapi_core.models.weights import check_expansion, check_loaded, is_finite, read_state_dict

NAME = "layers.1.attention.wo.weight"


@pytest.fixture
def state():
    return tiny_generator(seed=1).state_dict()


def written(path: Path, state: dict) -> Path:
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


def refused(path: Path, match: str) -> None:
    model = tiny_generator(seed=2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(FileError, match=match) as caught:
        import_official(path, model)
    assert caught.value.path == path
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_one_number_that_is_not_finite_is_enough(tmp_path, state, suffix, number):
    state[NAME][3, 5] = number
    refused(written(tmp_path / f"w{suffix}", state), rf"not finite numbers: {NAME}\.")


def test_a_number_that_becomes_infinite_in_the_precision_of_the_model_is_not_finite(tmp_path, state):
    state[NAME] = state[NAME].double()
    state[NAME][0, 0] = 1e300
    refused(written(tmp_path / "w.safetensors", state), f"not finite numbers: {NAME}")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.int64, torch.complex64, torch.float8_e4m3fn], ids=str)
def test_other_types_are_not_cast(tmp_path, state, suffix, dtype):
    state[NAME] = state[NAME].to(dtype)
    type_name = str(dtype).removeprefix("torch.")
    refused(written(tmp_path / f"w{suffix}", state), f"{NAME} has dtype {type_name}, not float32")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_precisions_are(tmp_path, state, dtype):
    model = import_official(
        written(tmp_path / "w.pt", {n: t.to(dtype) for n, t in state.items()}), tiny_generator(seed=2)
    )
    assert all(torch.equal(tensor, state[name].to(dtype).float()) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "make", "problem"),
    [
        (NAME, lambda t: t.to_sparse(), "is sparse"),
        (NAME, lambda t: t.to_sparse_csr(), "is sparse"),
        (NAME, lambda t: t.to("meta"), "has a shape and no values"),
        (NAME, lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "is quantized"),
        (7, lambda t: t, "7 is not the name of a tensor"),
    ],
)
def test_a_tensor_of_another_kind_and_a_key_that_is_no_name_are_refused(tmp_path, state, name, make, problem):
    state[name] = make(state[NAME])
    refused(written(tmp_path / "w.pt", {"model": state}), problem)


def bomb(path: Path, size: int) -> Path:
    """A `.pt` file whose tensor is so many zeros, compressed."""
    torch.save({"model": {"w": torch.zeros(size // 4)}}, path.with_suffix(".whole"))
    with (
        zipfile.ZipFile(path.with_suffix(".whole")) as whole,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for info in whole.infolist():
            small.writestr(info.filename, whole.read(info.filename))
    path.with_suffix(".whole").unlink()
    return path


def test_an_archive_that_expands_is_refused_by_its_directory(tmp_path, monkeypatch):
    path = bomb(tmp_path / "w.pt", 2**24)
    assert torch.load(path)["model"]["w"].numel() == 2**22  # PyTorch would unpack it
    monkeypatch.setattr(torch, "load", None)
    refused(path, rf"the archive of {path.stat().st_size} bytes would expand to 16\d{{6}}, and was not loaded")
    with pytest.raises(FileError, match="would expand"):
        check_expansion(tmp_path)  # the folder that a library is to read


def test_entries_that_share_their_bytes_are_counted_each(tmp_path, state):
    path = written(tmp_path / "w.pt", state)
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
    largest = max(infos, key=lambda info: info.file_size)
    assert sum(info.file_size for info in infos) < path.stat().st_size
    with zipfile.ZipFile(path, "a") as archive:
        for number in range(200):
            info = zipfile.ZipInfo(f"again/{number}")
            info.header_offset, info.file_size, info.compress_size = largest.header_offset, 2**20, 2**20
            info.CRC = 0
            archive.filelist.append(info)
        archive._didModify = True
    refused(path, "would expand")


@pytest.mark.parametrize("allocate", [lambda: torch.empty(2**50), lambda: [0] * 2**55], ids=["torch", "python"])
def test_a_file_for_which_memory_does_not_suffice_is_not_called_damaged_for_certain(
    tmp_path, state, monkeypatch, allocate
):
    path = written(tmp_path / "w.pt", state)
    monkeypatch.setattr(torch, "load", lambda *arguments, **options: allocate())
    refused(path, "asks for more memory than there is")


def test_looking_at_an_archive_takes_no_memory(tmp_path):
    path = bomb(tmp_path / "w.pt", 2**26)
    tracemalloc.start()
    with pytest.raises(FileError, match="would expand"):
        read_state_dict(path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_what_libraries_have_loaded_is_checked_with_its_files(tmp_path):
    network = PlainClassifier(10)
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    check_loaded(network, tmp_path)
    whole = {name: tensor.long() if name == "head.bias" else tensor for name, tensor in network.state_dict().items()}
    for name in ("model.safetensors", "pytorch_model.bin"):
        for path in tmp_path.iterdir():
            path.unlink()
        written(tmp_path / name, whole)
        with pytest.raises(FileError, match=rf"{name}: .*head.bias has dtype (I64|int64)"):
            check_loaded(network, tmp_path)
    written(tmp_path / "pytorch_model.bin", network.state_dict())
    network.head.bias.data[0] = torch.nan
    with pytest.raises(FileError, match=r"not finite numbers: head\.bias"):
        check_loaded(network, tmp_path)


def test_what_is_not_finite_is_not_saved(tmp_path):
    generator, classifier = tiny_generator(), PlainClassifier(10)
    generator.output.weight.data[0, 0] = torch.inf
    classifier.head.bias.data[0] = torch.nan
    with pytest.raises(FileError, match=r"generator\.safetensors: .*output\.weight\. They were not saved"):
        save_model(tmp_path, "generator", generator)
    with pytest.raises(FileError, match=r"classifier\.safetensors: .*head\.bias\. They were not saved"):
        save_classifier(classifier, tmp_path)
    assert list(tmp_path.iterdir()) == []


def replace_weights(folder: Path, kind: str, name: str, number: float, field: str) -> None:
    """Puts a number into saved weights, and their hash into the description, as another program might."""
    from safetensors.torch import load_file

    from vapi_core.files import read_json, sha256_file, write_json

    path = folder / f"{kind}.safetensors"
    state = load_file(path)
    state[name].view(-1)[0] = number
    save_file(state, path)
    write_json(folder / f"{kind}.json", read_json(folder / f"{kind}.json") | {field: sha256_file(path)})


def test_saved_models_are_checked_when_they_are_loaded_too(tmp_path):
    save_model(tmp_path, "generator", tiny_generator())
    replace_weights(tmp_path, "generator", "norm.weight", torch.nan, "sha256")
    with pytest.raises(FileError, match=r"generator\.safetensors: .*norm\.weight.* Run: dvc repro generator"):
        load_model(tmp_path, "generator", "Run: dvc repro generator")
    save_classifier(PlainClassifier(10), tmp_path)
    replace_weights(tmp_path, "classifier", "head.bias", torch.inf, "weights_sha256")
    with pytest.raises(FileError, match=r"classifier\.safetensors: .*not finite numbers: head\.bias.*dvc repro"):
        load_classifier(tmp_path)


def test_lpips_is_checked_by_the_names_in_its_file(tmp_path):
    state = LPIPS().state_dict()
    name = "lin2.model.1.weight"
    assert name in state
    for value, problem in ((state[name] + torch.nan, "not finite numbers"), (state[name].int(), "has dtype int32")):
        torch.save(state | {name: value}, tmp_path / "lpips.pth")
        with pytest.raises(FileError, match=f"lpips.pth: .*({problem}.*{name}|{name} {problem})"):
            load_lpips(tmp_path / "lpips.pth")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_large_numbers_are_finite_and_empty_tensors_too(dtype):
    assert is_finite(torch.full((3,), torch.finfo(dtype).max, dtype=dtype)) and is_finite(torch.empty(0, dtype=dtype))
    assert not is_finite(torch.tensor([1.0, torch.nan, 2.0], dtype=dtype))
