"""Errors that a user can mend. The command line shows their message as one line."""

DISTRIBUTION = "synth-cas"  # what pip calls synth
LONGEST = 1200  # characters of a message: a damaged file may hold names of any length


def shorten(message: str) -> str:
    """The message without its middle, if it is long: it begins with the name, and ends with what to
    do."""
    half = LONGEST // 2
    return message if len(message) <= LONGEST else f"{message[:half]} … {message[-half:]}"


class SynthError(Exception):
    """Something could not be done. The message names the file or option, and what to do."""

    exit_code = 1

    def __init__(self, message: object) -> None:
        super().__init__(shorten(str(message)))


class NotInstalled(SynthError):
    """An option needs a package that only an extra of synth installs."""

    def __init__(self, option: str, package: str, extra: str) -> None:
        super().__init__(
            f"{option}: needs {package}; install it with: pip install '{DISTRIBUTION}[{extra}]'"
        )


class UsageError(SynthError):
    """An option has a value that cannot work."""

    exit_code = 2
