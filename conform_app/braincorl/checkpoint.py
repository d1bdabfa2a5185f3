# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: reading the published spellings strictly, writing safetensors with a card.

Three spellings are read: a bare state dict (``.pth``), a Lightning checkpoint with the dict under
``state_dict`` (``.ckpt``), and safetensors; a leading ``model.`` or ``module.`` is taken off.  Pickles are
read with torch's weights-only reader: a file cannot run code.  Sizes are read off the shapes; the number of
heads leaves no trace in them, so it comes from the file's own card, from a preset of the same shapes, or from
the caller.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path, PosixPath, PurePosixPath
from typing import Any

from conform_app.braincorl.model import PRESETS, BraInCoRL, ModelSizes, as_sizes
from conform_app.devices import torch_device
from conform_app.errors import DataError, FileFaultError, NoInputError, UsageError

PREFIXES = ("model.", "module.")


def load_model(path_or_state_dict: Any, preset: Any = None, *, device: str = "cpu") -> BraInCoRL:
    """Load a BraInCoRL network, ready for prediction.

    Parameters
    ----------
    path_or_state_dict : path or mapping of str to Tensor
        Checkpoint file (``.pth``, ``.ckpt``, ``.safetensors``) or a state dict.
    preset : str or ModelSizes, optional
        Expected sizes: "CLIP", "DINO", "SIGLIP", "vis", or free ones.  Default: read from the file.
    device : str
        "cpu", "cuda", or "auto": a GPU if there is one.

    Returns
    -------
    BraInCoRL
        In evaluation mode, float32.  The card of the file, if it has one, is its attribute ``card``.

    Raises
    ------
    NoInputError, FileFaultError
        No such file, or one that holds no state dict.
    DataError
        Keys or shapes that do not match the sizes.
    UsageError
        The number of heads cannot be known; no such device.
    """
    import torch

    place = torch_device(device)
    name = "the state dict"
    card: dict[str, Any] = {}
    if isinstance(path_or_state_dict, Mapping):
        state = dict(path_or_state_dict)
    else:
        name = str(path_or_state_dict)
        state, card = read_state_dict(Path(path_or_state_dict))
    state = _plain_keys(state)
    not_tensors = [key for key, value in state.items() if not isinstance(value, torch.Tensor)]
    if not_tensors:
        raise DataError(
            f"{name} holds something other than a tensor at {not_tensors[0]}.", "Give a state dict."
        )
    sizes = as_sizes(preset) if preset is not None else _sizes_of(state, name, card)
    with torch.device("meta"):
        model = BraInCoRL(sizes)
    _check_state(state, model, name)
    for key, value in state.items():
        if not torch.isfinite(value).all():
            raise DataError(
                f"{name}: {key} has values that are not finite.", "The training failed; use another."
            )
    model.load_state_dict({key: value.float() for key, value in state.items()}, strict=True, assign=True)
    model.card = card
    return model.requires_grad_(False).eval().to(place)


def read_state_dict(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """State dict and card (empty if there is none) of a checkpoint file."""
    import torch

    if not path.is_file():
        raise NoInputError(
            f"There is no checkpoint {path}.", "Give the path of a .pth, .ckpt or .safetensors."
        )
    card: dict[str, Any] = {}
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                state = {key: file.get_tensor(key) for key in file.keys()}
                card = json.loads((file.metadata() or {}).get("card", "{}"))
        except (SafetensorError, OSError, json.JSONDecodeError) as error:
            raise FileFaultError(
                f"{path} is not a whole safetensors file: {error}", "Fetch it again."
            ) from error
        return state, card
    try:
        with _harmless_classes():
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise FileFaultError(
            f"{path} holds more than tensors, or is no checkpoint; it is not opened: a pickle can run code.",
            "If you trust it, save its state dict alone with torch.save or safetensors.",
        ) from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        raise FileFaultError(
            f"{path} cannot be read as a torch checkpoint: {error}", "Fetch it again."
        ) from error
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not loaded:
        raise FileFaultError(f"{path} holds no state dict.", "Give a state dict or a Lightning checkpoint.")
    return dict(loaded), card


def save_model(model: BraInCoRL, path: Path | str, card: dict[str, Any] | None = None) -> Path:
    """Write a network as safetensors, its sizes and card in the header; ``path`` is replaced as a whole.

    Parameters
    ----------
    model : BraInCoRL
    path : path
    card : dict, optional
        What else is to be known of it, as JSON.

    Returns
    -------
    Path
    """
    from safetensors.torch import save_file

    path = Path(path)
    card = {**(card or {}), "model": "BraInCoRL", "sizes": asdict(model.sizes)}
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    save_file(state, part, metadata={"card": json.dumps(card, sort_keys=True)})
    part.replace(path)
    return path


def _harmless_classes() -> Any:
    """Let the weights-only reader make what Lightning keeps beside the weights: plain records and paths."""
    from torch import serialization

    allow = getattr(serialization, "safe_globals", None)  # torch 2.5 and later
    return allow([argparse.Namespace, PosixPath, PurePosixPath]) if allow else nullcontext()


def _plain_keys(state: dict[str, Any]) -> dict[str, Any]:
    for prefix in PREFIXES:
        if state and all(str(key).startswith(prefix) for key in state):
            state = {key[len(prefix) :]: value for key, value in state.items()}
    return state


def _sizes_of(state: dict[str, Any], name: str, card: dict[str, Any]) -> ModelSizes:
    """Sizes from the shapes; heads from the card or a preset that has the same shapes."""
    try:
        _, registers, width = state["cls_token"].shape
        block, features = state["early_layers.0.block.3.weight"].shape
        ffn = state["transformer.0.ffn.linear2.weight"].shape[1]
    except (KeyError, ValueError) as error:
        raise DataError(
            f"{name} is not a BraInCoRL network: {error}.", "Give a checkpoint of one."
        ) from error
    layers = len({key.split(".")[1] for key in state if key.startswith("transformer.")})
    n_blocks = len({key.split(".")[1] for key in state if key.startswith("early_layers.")})
    sizes = ModelSizes(features - 1, width, layers, ffn, registers, 1, block, n_blocks)
    known = [*([ModelSizes(**card["sizes"])] if "sizes" in card else []), *PRESETS.values()]
    for other in known:
        if replace(other, heads=1) == sizes:
            return other
    raise UsageError(
        f"{name} has the shapes {sizes} of no preset, and the number of heads cannot be read off them.",
        "Give preset=ModelSizes(...).",
    )


def _check_state(state: dict[str, Any], model: BraInCoRL, name: str) -> None:
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    shapes = [key for key in expected if key in found and found[key] != expected[key]]
    if missing or extra:
        first = f"{missing[0]} is missing" if missing else f"{extra[0]} is unknown"
        raise DataError(
            f"{name} does not fit {model.sizes}: {len(missing)} tensors missing, {len(extra)} unknown "
            f"({first}).",
            "Choose the preset that the checkpoint was trained with.",
        )
    if shapes:
        key = shapes[0]
        raise DataError(
            f"{name} does not fit {model.sizes}: {key} has shape {found[key]} instead of {expected[key]} "
            f"({len(shapes)} tensors differ).",
            "Choose the preset that the checkpoint was trained with.",
        )
