# SPDX-License-Identifier: Apache-2.0
"""Progress of long steps on the terminal: a bar where somebody watches, silence where nobody does."""

from __future__ import annotations

import sys
from collections.abc import Callable


def progress_bar(title: str) -> Callable[[str, int, int], None]:
    """Return a callback ``(stage, done, total)`` that draws a bar; silent when stderr is no terminal.

    Parameters
    ----------
    title : str
        What the bar stands for.
    """
    if not sys.stderr.isatty():
        return lambda stage, done, total: None
    from tqdm import tqdm

    bars: dict[str, tqdm] = {}

    def show(stage: str, done: int, total: int) -> None:
        if stage not in bars:
            bars[stage] = tqdm(total=total, desc=f"{title} {stage}", leave=False, file=sys.stderr)
        bars[stage].update(done - bars[stage].n)
        if done >= total:
            bars.pop(stage).close()

    return show
