"""Errors that a user can act on.

Every message says what was got, what was expected and what to do. Each class is also a standard type, so that
``except ValueError`` keeps working. ``exit_code`` is what the command line returns.

    TriloopError                 1
    |- UsageError (ValueError)   2   a wrong flag, value, file or combination: nothing was started
    |  |- ConfigError            2   a configuration that cannot be used
    |  |- ModelError             2   a model directory that is missing, incomplete or corrupt
    |  |- DataError              2   a data file that is missing, empty or malformed
    |  |- VerifierError          2   a verifier that cannot be loaded or fails its preflight
    |  |- RunFolderError         2   a run folder that is in use, absent, or not a run
    |- WorkError (RuntimeError)  1   the work itself failed; what was done is kept
    |  |- StoreError             1   the store cannot be written or read (disk full, corrupt file)
    |  |- JudgeError             1   a whole batch of judgements failed
    |- GuardStop (RuntimeError)  3   a guard stopped the run
    |- Interrupted               130 SIGINT or SIGTERM; the run can be resumed
"""

from __future__ import annotations

__all__ = [
    "ConfigError",
    "DataError",
    "GuardStop",
    "Interrupted",
    "JudgeError",
    "ModelError",
    "RunFolderError",
    "StoreError",
    "TriloopError",
    "UsageError",
    "VerifierError",
    "WorkError",
]


class TriloopError(Exception):
    """Base of all errors that Triloop raises on purpose."""

    exit_code = 1


class UsageError(TriloopError, ValueError):
    """Wrong use: nothing was started and nothing was lost."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration that cannot be used."""


class ModelError(UsageError):
    """A model directory that is missing, incomplete or corrupt."""


class DataError(UsageError):
    """A data file that is missing, empty or malformed."""


class VerifierError(UsageError):
    """A verifier that cannot be loaded, or that fails its preflight."""


class RunFolderError(UsageError):
    """A run folder that is in use, absent, or not a run."""


class WorkError(TriloopError, RuntimeError):
    """The work failed after it had started; everything committed so far is kept."""


class StoreError(WorkError):
    """The store cannot be written or read."""


class JudgeError(WorkError):
    """A whole batch of judgements failed."""


class GuardStop(TriloopError, RuntimeError):
    """A guard stopped the run."""

    exit_code = 3


class Interrupted(TriloopError):
    """The run was asked to stop (SIGINT, SIGTERM) and can be resumed."""

    exit_code = 130
