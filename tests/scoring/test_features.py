"""Features of images under the extractors."""

import shutil

import numpy as np
import pytest
import torch

from vapi_core import fingerprint
from vapi_core.data.images import to_tensor
from vapi_core.errors import FileError, ParameterError
from vapi_core.models.classifier import PlainClassifier, ResidualClassifier, save_classifier
from vapi_core.scoring.features import EFFICIENTNET_SIZE, cached_features, extract, load_extractor


@pytest.fixture(scope="module")
def efficientnet():
    return load_extractor("efficientnet-lite0", input_size=64)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (7, 28, 28, 3), dtype=np.uint8)


@pytest.fixture
def digit_classifier(tmp_path):
    torch.manual_seed(0)
    classifier = ResidualClassifier(10).eval()
    save_classifier(classifier, tmp_path / "classifier")
    return classifier, load_extractor("classifier", weights=tmp_path / "classifier")


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory):
    """A file of random weights in the layout of torch-fidelity's InceptionV3."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    class Unloaded(module.FeatureExtractorInceptionV3):
        def load_state_dict(self, *args, **kwargs):
            pass

    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *args, **kwargs: {})
        torch.save(Unloaded("inception", ["2048"]).state_dict(), path)
    return path


def test_efficientnet_sees_a_palace_in_a_photograph_of_one():
    from sklearn.datasets import load_sample_image
    from timm.data import ImageNetInfo

    photograph = load_sample_image("china.jpg")[:, 106:533]
    extracted = extract(photograph[None], load_extractor("efficientnet-lite0", input_size=EFFICIENTNET_SIZE))
    assert ImageNetInfo().index_to_description(int(extracted["logits"].argmax())) == "palace"
    assert extracted["features"].shape == (1, 1280)
    assert extracted["logits"].shape == (1, 1000)


def test_the_number_of_threads_changes_nothing_and_is_left_as_it_was(efficientnet, images):
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(extract(images, efficientnet, batch_size=2))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert all(np.array_equal(results[0][name], results[1][name]) for name in ("features", "logits"))


def test_efficientnet_logits_follow_from_its_features(efficientnet, images):
    extracted = extract(images, efficientnet)
    head = efficientnet.network.network.classifier
    expected = extracted["features"] @ head.weight.numpy().T + head.bias.numpy()
    np.testing.assert_allclose(extracted["logits"], expected, atol=1e-4)


def test_features_do_not_depend_on_the_batch_size_or_on_where_the_images_lie(efficientnet, images, tmp_path):
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    whole, parts = extract(images, efficientnet, batch_size=7), extract(mapped, efficientnet, batch_size=3)
    for name in ("features", "logits"):
        assert parts[name].dtype == np.float32
        np.testing.assert_allclose(parts[name], whole[name], atol=1e-4)


def test_the_input_size_is_part_of_the_extractors_name(efficientnet):
    other = load_extractor("efficientnet-lite0", input_size=96)
    assert other.name != efficientnet.name
    assert other.weights_sha256 == efficientnet.weights_sha256


def test_a_classifier_gives_its_penultimate_layer_and_its_logits(digit_classifier, images):
    classifier, extractor = digit_classifier
    extracted = extract(images, extractor, batch_size=4)
    features, logits = classifier(to_tensor(images))
    np.testing.assert_allclose(extracted["features"], features.detach(), atol=1e-5)
    np.testing.assert_allclose(extracted["logits"], logits.detach(), atol=1e-5)


def test_inception_takes_weights_from_the_path_that_is_given(inception_weights, images):
    extractor = load_extractor("inception-v3-compat", weights=inception_weights)
    extracted = extract(images[:2], extractor, batch_size=1)
    assert extracted["features"].shape == (2, 2048)
    assert extracted["logits"].shape == (2, 1008)
    fully_connected = torch.load(inception_weights)["fc.weight"].numpy()  # "unbiased": without the layer's bias
    np.testing.assert_allclose(extracted["logits"], extracted["features"] @ fully_connected.T, atol=1e-4)


def test_inception_weights_that_are_not_there_are_named_with_what_to_do(tmp_path):
    with pytest.raises(FileError, match="nowhere.pth: .* missing. Download https://.*6726825d.pth") as error:
        load_extractor("inception-v3-compat", weights=tmp_path / "nowhere.pth")
    assert error.value.path == tmp_path / "nowhere.pth"


def test_without_a_path_the_file_that_torchs_cache_lacks_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(FileError, match=r"inception-2015-12-05-6726825d.pth: .*missing.* Download") as error:
        load_extractor("inception-v3-compat")
    assert error.value.path.parent == tmp_path / "checkpoints"


def test_a_file_that_is_not_inceptions_weights_is_refused(tmp_path):
    torch.save(PlainClassifier(10).state_dict(), tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("not weights")
    (tmp_path / "empty.pth").write_bytes(b"")
    for name in ("other.pth", "list.pth", "text.pth", "empty.pth"):
        with pytest.raises(FileError, match=f"{name}: these are not the weights of InceptionV3"):
            load_extractor("inception-v3-compat", weights=tmp_path / name)


def test_an_unknown_extractor_and_a_classifier_without_a_directory_are_refused():
    with pytest.raises(ParameterError, match="no 'dinov2'; choose efficientnet-lite0, inception-v3-compat or classif"):
        load_extractor("dinov2")
    with pytest.raises(ParameterError, match="needs the directory"):
        load_extractor("classifier")


def test_cached_features_are_computed_once(digit_classifier, images, tmp_path):
    _, extractor = digit_classifier
    passes = []
    extractor.network.register_forward_hook(lambda *args: passes.append(1))
    first = cached_features(tmp_path / "cache", images, extractor)
    again = cached_features(tmp_path / "cache", images, extractor)
    assert len(passes) == 1
    np.testing.assert_array_equal(first["features"], again["features"])
    np.testing.assert_array_equal(first["logits"], extract(images, extractor)["logits"])


def test_other_images_or_other_weights_get_their_own_file_in_the_cache(digit_classifier, images, tmp_path):
    _, extractor = digit_classifier
    torch.manual_seed(1)
    save_classifier(ResidualClassifier(10), tmp_path / "other")
    changed = images.copy()
    changed[6, 27, 27, 2] ^= 1
    cached_features(tmp_path / "cache", images, extractor)
    cached_features(tmp_path / "cache", changed, extractor)
    cached_features(tmp_path / "cache", images, load_extractor("classifier", weights=tmp_path / "other"))
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_changed_code_does_not_return_the_features_of_the_old_one(digit_classifier, images, tmp_path, monkeypatch):
    _, extractor = digit_classifier
    code = shutil.copytree(fingerprint.CODE, tmp_path / "code", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(fingerprint, "CODE", code)
    passes = []
    extractor.network.register_forward_hook(lambda *args: passes.append(1))
    cached_features(tmp_path / "cache", images, extractor)
    (code / "scoring" / "preference.py").write_text("# no part of features\n")
    cached_features(tmp_path / "cache", images, extractor)
    assert len(passes) == 1
    for number, name in enumerate(("scoring/features.py", "models/classifier.py", "data/images.py"), start=2):
        (code / name).write_text("# another preprocessing\n")
        cached_features(tmp_path / "cache", images, extractor)
        assert len(passes) == number


def test_another_version_of_a_library_extracts_anew(digit_classifier, images, tmp_path, monkeypatch):
    _, extractor = digit_classifier
    cached_features(tmp_path / "cache", images, extractor)
    monkeypatch.setattr(fingerprint, "version", lambda library: "another")
    cached_features(tmp_path / "cache", images, extractor)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_damaged_file_in_the_cache_is_named(digit_classifier, images, tmp_path):
    _, extractor = digit_classifier
    cached_features(tmp_path / "cache", images, extractor)
    (path,) = (tmp_path / "cache").iterdir()
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(FileError, match="the file is damaged.*Remove it") as error:
        cached_features(tmp_path / "cache", images, extractor)
    assert error.value.path == path
