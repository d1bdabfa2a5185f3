# SPDX-License-Identifier: Apache-2.0
"""The face of CONFORM: arguments in, exit code out."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``conform`` and return its exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process by default.

    Returns
    -------
    int
        0, or the exit code of the error (see :mod:`conform_app.errors`), whose text is the last line printed.
    """
    from conform_app.cli.parser import parse
    from conform_app.errors import ConformError

    try:
        settings = parse(argv)
        from conform_app.cli.run import run
        from conform_app.cli.session import termination_interrupts

        with termination_interrupts():
            return run(settings)
    except ConformError as error:
        print(f"conform: error: {error} (exit code {error.exit_code})", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("conform: interrupted; finished fits are kept (exit code 75)", file=sys.stderr)
        return 75
