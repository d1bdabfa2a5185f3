# SPDX-License-Identifier: Apache-2.0
"""The one family of errors that CONFORM raises on purpose.

Each class fixes an exit code (BEP027's table, all below 128) and each error carries two sentences: what is
wrong, naming the file, and what to do about it.  The command line prints them on one line and exits with the
code; a traceback is shown only for errors that are not of this family, which are bugs.
"""

from __future__ import annotations


class ConformError(Exception):
    """Base of all deliberate errors.

    Parameters
    ----------
    message : str
        What is wrong; names the file, run or voxel concerned.
    remedy : str, optional
        What the user can do about it.

    Attributes
    ----------
    exit_code : int
        Exit status of the command line when this error ends a run.
    """

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.message = " ".join(str(message).split())
        self.remedy = " ".join(str(remedy).split())

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()


class RunFailed(ConformError):
    """Some fits crashed; others may be complete."""

    exit_code = 1


class InvalidDatasetError(ConformError):
    """The input dataset failed BIDS validation."""

    exit_code = 16


class UnknownLevelError(ConformError):
    """The analysis level is neither participant nor group."""

    exit_code = 17


class NothingSelectedError(ConformError):
    """The labels and filters given select no file."""

    exit_code = 18


class UsageError(ConformError):
    """Options that do not go together, or values out of range."""

    exit_code = 64


class DataError(ConformError):
    """The data contradict themselves or do not allow the analysis asked for."""

    exit_code = 65


class NoInputError(ConformError):
    """Files that the analysis needs do not exist."""

    exit_code = 66


class CannotCreateError(ConformError):
    """The output cannot be written, or holds results of other settings."""

    exit_code = 73


class FileFaultError(ConformError):
    """A file cannot be read or written to the end (truncated, disk full)."""

    exit_code = 74


class TemporaryError(ConformError):
    """Something is busy: the same command may succeed later."""

    exit_code = 75


class MissingCommandError(ConformError):
    """A program that this run needs is not installed."""

    exit_code = 127


def all_errors() -> tuple[type[ConformError], ...]:
    """Every class of the family, ordered by exit code (for docs and tests)."""
    return tuple(sorted(ConformError.__subclasses__(), key=lambda c: (c.exit_code, c.__name__)))
