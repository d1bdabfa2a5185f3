# SPDX-License-Identifier: Apache-2.0
"""Encoding models for a new participant from a few images.

Across participants it is learned how voxels answer to images: by a transformer that reads a voxel's trials
(`BraInCoRL`), and in closed form (`fit_prior`).  `adapt` turns a new participant's context images into
encoding weights per voxel.  Arrays in, results out: features ``(n_images, E)``, betas
``(n_voxels, n_images)``.
"""

from __future__ import annotations

from typing import Any

# Resolved on first use: torch is loaded by those who need it.
_HOMES = {
    "Adapted": "adapting",
    "adapt": "adapting",
    "Aligned": "aligned",
    "AlignedAverage": "aligned",
    "align_group": "aligned",
    "aligned_curve": "aligned",
    "fit_aligned": "aligned",
    "Alignment": "alignment",
    "align": "alignment",
    "from_collection": "participants",
    "Prior": "prior",
    "fit_prior": "prior",
    "fit_five_fold_ridge": "ridge",
    "fit_ridge": "ridge",
    "group_mean": "ridge",
    "unit_norm": "checks",
    "BraInCoRL": "model",
    "ModelSizes": "model",
    "PRESETS": "model",
    "load_model": "checkpoint",
    "save_model": "checkpoint",
    "transformer_weights": "inference",
    "Extractor": "features",
    "extract": "features",
    "open_extractor": "features",
    "read_features": "features",
    "write_features": "features",
    "category_contrast": "understanding",
    "embed_prompts": "understanding",
    "image_importance": "understanding",
    "modality_gap": "understanding",
    "text_query": "understanding",
    "evaluate": "evaluation",
    "learning_curve": "evaluation",
    "score": "evaluation",
    "start_from_prior": "starting",
    "Stage": "training",
    "TrainSettings": "training",
    "Trained": "training",
    "leave_one_out": "participants",
    "train": "training",
    "training_bar": "progress",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
