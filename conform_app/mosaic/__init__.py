# SPDX-License-Identifier: Apache-2.0
"""Many studies as one dataset: stimulus identity, a split without leakage, one store of single-trial betas.

Takes and gives arrays and tables; the files it owns are those of the store.  ``docs/mosaic.md`` is the tour.
"""

from conform_app.mosaic.audit import Audit
from conform_app.mosaic.averages import Averages
from conform_app.mosaic.collection import Collection
from conform_app.mosaic.content import (
    content_hash,
    frame_hashes,
    movie_hash,
    overlapping_movies,
    pixel_hash,
    shared_frames,
)
from conform_app.mosaic.identity import Identity, resolve_duplicates
from conform_app.mosaic.normalise import FitUnit
from conform_app.mosaic.own import own_split
from conform_app.mosaic.similarity import THRESHOLD, THRESHOLD_ORIGIN, Embeddings
from conform_app.mosaic.split import Split, split_stimuli

__all__ = [
    "THRESHOLD",
    "THRESHOLD_ORIGIN",
    "Audit",
    "Averages",
    "Collection",
    "Embeddings",
    "FitUnit",
    "Identity",
    "Split",
    "content_hash",
    "frame_hashes",
    "movie_hash",
    "overlapping_movies",
    "own_split",
    "pixel_hash",
    "resolve_duplicates",
    "shared_frames",
    "split_stimuli",
]
