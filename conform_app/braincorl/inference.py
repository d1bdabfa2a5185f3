# SPDX-License-Identifier: Apache-2.0
"""Running the network over many voxels: blocks sized to memory, bf16 on a GPU, resumable.

A voxel's weights depend on that voxel alone, so blocks change a result by rounding only.  A resumable run
keeps its weights in a ``.npy`` file that starts as NaN; a digest of model, features and betas beside it tells
whether the file belongs to the same question.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from conform_app.braincorl.checks import check_betas, check_features
from conform_app.braincorl.model import BraInCoRL, ModelSizes
from conform_app.devices import in_bfloat16
from conform_app.errors import CannotCreateError, UsageError

MEMORY = 2 * 1024**3


def voxels_per_block(sizes: ModelSizes, n_images: int, memory: int | None) -> int:
    """Voxels whose activations fit in ``memory`` bytes (float32, fused attention)."""
    # Widest moment of a layer: the FFN's two halves, their product, the residual stream, q, k, v.
    per_token = 4 * (3 * sizes.ffn + 6 * sizes.width + 2 * sizes.block)
    return max(1, int((memory or MEMORY) // (per_token * (n_images + sizes.registers))))


def transformer_weights(
    model: BraInCoRL,
    features,
    betas,
    *,
    block: int | None = None,
    memory: int | None = None,
    precision: str = "auto",
    keep_at: Path | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Encoding weights of every voxel from shared context images.

    Parameters
    ----------
    model : BraInCoRL
        On the device that is to be used.
    features : array (S, E)
        Unit-norm context features.
    betas : array (n_voxels, S)
    block : int, optional
        Voxels at a time; default: as ``memory`` allows, at most 256.
    memory : int, optional
        Bytes for the working arrays of a block.
    precision : {"auto", "float32", "bfloat16"}
        "auto": bfloat16 on a GPU that multiplies in it (NVIDIA's from Ampere on), float32 elsewhere.  On CPUs
        that do (AVX-512 BF16, AMX) bfloat16 is some three times as fast; weights differ by about 1 % of their
        spread.
    keep_at : path, optional
        ``.npy`` file that holds the weights as they come; a run that was cut off goes on from it.
    progress : callable (done, total), optional

    Returns
    -------
    ndarray (n_voxels, E + 1), float32
        Bias last; NaN for voxels that are constant or not finite.

    Raises
    ------
    DataError
        Features or betas that the network cannot read.
    UsageError
        An unknown precision.
    """
    import torch

    features = check_features(features, model.sizes.features)
    betas, valid = check_betas(betas, len(features))
    if precision not in ("auto", "float32", "bfloat16"):
        raise UsageError(f"Precision {precision!r} is not known.", "Give auto, float32 or bfloat16.")
    device = next(model.parameters()).device
    half = in_bfloat16(precision, device)
    out = _open(keep_at, model, features, betas, half)
    todo = np.flatnonzero(valid & np.isnan(out[:, -1]))
    block = block or min(256, voxels_per_block(model.sizes, len(features), memory))
    context = torch.from_numpy(features).to(device)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=half):
            for start in range(0, len(todo), block):
                rows = todo[start : start + block]
                y = torch.from_numpy(np.ascontiguousarray(betas[rows])).to(device)
                out[rows] = model.weights(context, y)[0].float().cpu().numpy()
                if progress:
                    progress(min(start + block, len(todo)), len(todo))
    finally:
        model.train(was_training)
    if isinstance(out, np.memmap):
        out.flush()
    return np.array(out)


def _open(keep_at, model: BraInCoRL, features: np.ndarray, betas: np.ndarray, half: bool) -> np.ndarray:
    shape = (len(betas), model.sizes.features + 1)
    if keep_at is None:
        return np.full(shape, np.nan, np.float32)
    path = Path(keep_at)
    digest = hashlib.sha256(f"{model.sizes} {half}".encode())
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode() + value.detach().cpu().numpy().tobytes())
    for array in (features, np.ascontiguousarray(betas)):
        digest.update(array.tobytes())
    mark = path.with_name(path.name + ".json")
    if path.exists() and mark.exists():
        if json.loads(mark.read_text())["digest"] != digest.hexdigest():
            raise CannotCreateError(
                f"{path} holds weights of another model, context or betas.", "Remove it or name another file."
            )
        return np.lib.format.open_memmap(path, mode="r+")
    mark.unlink(missing_ok=True)
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    out[:] = np.nan
    out.flush()
    mark.write_text(json.dumps({"digest": digest.hexdigest()}))
    return out
