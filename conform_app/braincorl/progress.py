# SPDX-License-Identifier: Apache-2.0
"""A bar for a training that runs in a terminal: one line, redrawn after every epoch.

Epochs of different stages take different times, so what is left is told from the seconds per step so far.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

from conform_app.braincorl.training import TrainSettings

WIDTH = 24


def training_bar(settings: TrainSettings, stream: TextIO | None = None) -> Callable[[dict[str, float]], None]:
    """What `train` takes as ``progress``: draws a bar over all stages.

    Parameters
    ----------
    settings : TrainSettings
        Those of the training; a stage that stops early moves the bar on to the next.
    stream : text stream, optional
        Default: standard error.  Where it is no terminal, every epoch has a line of its own.

    Returns
    -------
    callable
        Takes a row of the history.
    """
    stream = stream or sys.stderr
    steps = [stage.steps * stage.epochs for stage in settings.stages]
    seen: dict[str, float] = {}

    def show(row: dict[str, float]) -> None:
        number = int(row["stage"]) - 1
        stage = settings.stages[number]
        done = sum(steps[:number]) + stage.steps * int(row["epoch"])
        share = done / sum(steps)
        # A run that goes on from an earlier one starts in the middle.
        first, begun = seen.setdefault("done", done), seen.setdefault("time", time.monotonic())
        spent = time.monotonic() - begun
        left = f", {spent / (done - first) * (sum(steps) - done) / 60:.0f} min left" if done > first else ""
        bar = ("#" * round(WIDTH * share)).ljust(WIDTH, ".")
        line = (
            f"[{bar}] stage {number + 1}/{len(steps)}, epoch {int(row['epoch'])}/{stage.epochs}: "
            f"loss {row['loss']:.4f}, held out {row['validation_loss']:.4f}{left}"
        )
        if stream.isatty():
            stream.write("\r" + line.ljust(int(seen.get("width", 0))) + ("\n" if done == sum(steps) else ""))
            seen["width"] = len(line)
        else:
            stream.write(line + "\n")
        stream.flush()

    return show
