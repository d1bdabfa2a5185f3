# SPDX-License-Identifier: Apache-2.0
"""Models of earlier calls that this one does not make: whether they are what it would make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from conform_app.bids.encoding import encode_names
from conform_app.errors import ConformError


def earlier_models(root: Path, space: str, keys: Sequence[str], same: Callable[[str], bool]) -> list[str]:
    """Say whose models were made from something else.

    Parameters
    ----------
    root : Path
        Of the dataset of encoding models.
    space : str
    keys : sequence of str
        Participants of the collection that this call does not model.
    same : callable
        Whether a participant's models were made from the same as this call would make them from; raises
        ConformError where it would make none.

    Returns
    -------
    list of str
        One sentence, or none.
    """

    def differs(key: str) -> bool:
        try:
            return not same(key)
        except ConformError:
            return True

    there = [key for key in keys if (root / encode_names("record", key, space)[0]).is_file()]
    found = [key for key in there if differs(key)]
    if not found:
        return []
    return [
        f"{', '.join(found)}: models of an earlier call, made from other images, participants, features or "
        "settings than this call has; do not compare them with the others."
    ]
