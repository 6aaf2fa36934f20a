"""Errors that a user can mend. The command line shows their message as one line."""


class SynthError(Exception):
    """Something could not be done. The message names the file or option, and what to do."""

    exit_code = 1


class UsageError(SynthError):
    """An option has a value that cannot work."""

    exit_code = 2
