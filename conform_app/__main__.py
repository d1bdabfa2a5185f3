# SPDX-License-Identifier: Apache-2.0
"""``python -m conform_app``."""

import sys

from conform_app.cli import main

if __name__ == "__main__":
    sys.exit(main())
