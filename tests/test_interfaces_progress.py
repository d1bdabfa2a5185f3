# SPDX-License-Identifier: Apache-2.0
"""Progress: bars on a terminal, silence elsewhere."""

import io
import sys

from conform_app.interfaces.progress import progress_bar


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


def test_bars_on_a_terminal(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    show = progress_bar("sub-01: GLMsingle")
    show("ridge", 1, 4)
    show("ridge", 4, 4)
    assert "sub-01: GLMsingle ridge" in screen.getvalue()


def test_silence_elsewhere(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    progress_bar("sub-01: GLMsingle")("ridge", 1, 4)
    assert log.getvalue() == ""
