# SPDX-License-Identifier: Apache-2.0
"""Names that are one but for how they are written: folder, letter case, extension.

A study calls a picture ``cat.png``, another one ``stimuli/Cat.jpg``.  Names decide only where they are equal,
files only where they are equal byte for byte, so these count as two stimuli; where no features tell, they may
lie on both sides of the split.  Whether they are one picture is for the user to say.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from conform_app.mosaic.similarity import Embeddings

if TYPE_CHECKING:
    from conform_app.mosaic.identity import Identity


def spelling_warnings(
    identity: Identity,
    sides: Mapping[str, str],
    embeddings: Mapping[str, np.ndarray] | Embeddings | None = None,
) -> list[str]:
    """Say which stimuli of several datasets have names that differ in their spelling only.

    Parameters
    ----------
    identity : Identity
    sides : mapping of str to str
        Side of each stimulus in the split.
    embeddings : mapping or Embeddings, optional
        Stimuli that have one were compared by it and are not told of.

    Returns
    -------
    list of str
        One sentence, or none.
    """
    from conform_app.mosaic.identity import stimulus_embeddings

    stimuli = identity.stimuli["stimulus"]
    compared = set(stimulus_embeddings(stimuli, identity.names, embeddings).names)
    found: dict[str, dict[str, tuple[str, str]]] = {}
    for dataset, name, stimulus in zip(
        *(identity.names[column] for column in ("dataset", "name", "stimulus")), strict=True
    ):
        if stimulus not in compared:
            found.setdefault(_core(name), {}).setdefault(stimulus, (dataset, name))
    several = [
        its
        for its in found.values()
        if len({name for _, name in its.values()}) > 1 and len({dataset for dataset, _ in its.values()}) > 1
    ]
    if not several:
        return []
    split = [{"train", "test"} <= {sides.get(stimulus, "") for stimulus in its} for its in several]
    first = several[int(np.argmax(split))]
    listed = ", ".join(f"{dataset}/{name}" for dataset, name in first.values())
    n, n_split = len(several), sum(split)
    names = "name is" if n == 1 else "names are"
    leak = f"; {n_split} of them {'is' if n_split == 1 else 'are'} in train and in test" if n_split else ""
    return [
        f"{n} {names} written in several ways (folder, letter case, extension) and count as different "
        f"stimuli: {listed}{', ...' if n > 1 else ''}{leak}. If they are one picture, say so with --aliases, "
        "or give --features, which find near-duplicates."
    ]


def _core(name: str) -> str:
    """A file's name without folders, extension and letter case."""
    base = unicodedata.normalize("NFKC", name).replace("\\", "/").rpartition("/")[2]
    return (base.rpartition(".")[0] or base).casefold()
