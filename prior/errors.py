"""Errors that a user can cause and mend."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in the user's input. The message is one line: what is wrong, where, and what to do about it.

    The command line prints it and exits with code 2, without a traceback.
    """


class CorpusTooSmall(ValueError):
    """A data scale asks for more caption tokens than the corpus holds."""


class TryAgain(UserError):
    """Something outside failed, such as a connection, and may work the next time: exit code 1, so it is retried."""
