# SPDX-License-Identifier: Apache-2.0
"""Nuisance regressors from events that are no trials: button presses, say.

Each kind of event is one regressor: the sum of canonical responses to its events,
``x(t) = sum_k h(t - t_k)``, read at the volumes' times.  Events have no duration (0.1 s in the table of the
canonical response) and lie anywhere between volumes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from conform_app.glmsingle.hrf import TableResponses, canonical_table


def event_regressors(events: Sequence[Sequence[float]], volumes: np.ndarray, tr: float) -> np.ndarray:
    """Return a regressor for each kind of event that has a response within the run.

    Parameters
    ----------
    events : sequence of sequences of float
        Times of the events of each kind, s.
    volumes : ndarray of shape (n_volumes,)
        Time of each volume, s.
    tr : float
        Repetition time, s.

    Returns
    -------
    ndarray of shape (n_volumes, n_kinds), float64
        Peak 1 for a single event; kinds without a response in the run are left out.
    """
    response = TableResponses(canonical_table(), tr, whole_seconds=False)
    columns = []
    for times in events:
        column = np.zeros(len(volumes))
        for time in times:
            column += response.sample(np.asarray(volumes) - time, 0.0)[:, 0]
        if column.any():
            columns.append(column)
    return np.stack(columns, axis=1) if columns else np.zeros((len(volumes), 0))
