# SPDX-License-Identifier: Apache-2.0
"""CONFORM: task fMRI of many labs, measured in many ways, brought into one form."""

try:
    from conform_app._version import __version__
except ImportError:  # a checkout that was never built
    __version__ = "0+unknown"

__all__ = ["__version__"]
