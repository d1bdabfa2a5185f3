# SPDX-License-Identifier: Apache-2.0
"""Contexts of a participant, and which of their images others have seen: where alignment is possible.

Repeat e of size n takes images ``e n ... (e + 1) n`` of one shuffled order of the train images.  Two stimuli
are one image where their features are equal.  A participant can be aligned to another for a size if they
share five images in *every* context of that size, so that all estimators are compared on the same contexts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from conform_app.braincorl.alignment import LEAST_SHARED
from conform_app.errors import DataError

if TYPE_CHECKING:
    from conform_app.encode.job import EncodePlan, Target

ALIGNED = {
    "ridge": "aligned ridge",
    "procrustes": "aligned procrustes",
    "optimal_transport": "aligned transport",
}
"""Name of the estimator, by the value of ``--encode-alignment``."""


def contexts(n_train: int, sizes: Sequence[int], repeats: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """Size, repeat and train images of every context."""
    order = np.random.default_rng(0).permutation(n_train)
    for size in sizes:
        for repeat in range(min(repeats, n_train // size)):
            yield size, repeat, order[repeat * size : (repeat + 1) * size]


def image_keys(features: np.ndarray) -> list[bytes]:
    """An image by its features."""
    return [row.tobytes() for row in np.ascontiguousarray(features)]


def shared_counts(
    plan: EncodePlan, key: str, teachers: Sequence[str], sizes: Sequence[int], repeats: int
) -> dict[int, dict[str, int]]:
    """Train images that a participant shares with each other: the fewest over the contexts of each size."""
    own = image_keys(plan.rows(plan.people[key].train))
    theirs = {name: set(image_keys(plan.rows(plan.people[name].train))) for name in teachers}
    found: dict[int, dict[str, int]] = {size: {} for size in sizes}
    for size, _, rows in contexts(len(own), sizes, repeats):
        seen = {own[row] for row in rows}
        for name, images in theirs.items():
            n = len(seen & images)
            found[size][name] = min(n, found[size].get(name, n))
    return found


def usable(counts: dict[str, int]) -> list[str]:
    """Who shares enough images in every context."""
    return [name for name, n in counts.items() if n >= LEAST_SHARED]


def alignment_notes(plan: EncodePlan, targets: Sequence[Target], repeats: int) -> list[str]:
    """What cannot be aligned, and why.

    Raises
    ------
    DataError
        Nothing can.
    """
    notes, most = [], 0
    for target in targets:
        counts = shared_counts(plan, target.key, target.teachers, target.sizes, repeats)
        its = max((n for row in counts.values() for n in row.values()), default=0)
        most = max(most, its)
        short = [str(size) for size in target.sizes if size not in target.aligned]
        if not target.aligned:
            notes.append(
                f"{target.key} has no model through alignment: its contexts share at most {its} train images "
                f"with another participant, and alignment needs {LEAST_SHARED}."
            )
        elif short:
            notes.append(
                f"{target.key} has no model through alignment from contexts of {', '.join(short)}: they "
                f"share fewer than {LEAST_SHARED} train images with every other participant."
            )
    if not any(target.aligned for target in targets):
        raise DataError(
            f"--encode-alignment: contexts share at most {most} train images with another participant, and "
            f"alignment needs {LEAST_SHARED}.",
            "Ask for larger contexts with --encode-context, or leave it out: no other estimator needs it.",
        )
    return notes
