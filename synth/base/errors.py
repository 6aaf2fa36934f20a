"""The two errors that a user can mend; the command line shows their message as one line."""


class SynthError(Exception):
    """Something could not be done; the message names the file or option and the mend."""

    exit_code = 1


class UsageError(SynthError):
    """An option has a value that can never work."""

    exit_code = 2
