"""The Hugging Face hub: what is sent there, and what is loaded from there.

The only module that imports huggingface_hub, which the extra `hub` installs. The token comes from
HF_TOKEN or from `hf auth login`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from synth.base.errors import NotInstalled, SynthError, UsageError

Kind = Literal["model", "dataset"]
LOGIN = "log in with: hf auth login, or set HF_TOKEN"
HIDDEN = [".*", "*/.*"]  # locks, and what an ended process left


def check_installed(option: str) -> None:
    """Raises `NotInstalled` without huggingface_hub."""
    try:
        import huggingface_hub.errors  # noqa: F401
    except ImportError as error:
        raise NotInstalled(option, "huggingface_hub", "hub") from error


def check_name(name: str, what: str) -> None:
    """Raises `UsageError`, with a message that begins with `what`, unless the name can be that of a
    repository of somebody."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
        owner, _, repository = name.partition("/")
        if not owner or not repository:
            raise HFValidationError("it lacks the owner")
    except HFValidationError as error:
        reason = str(error).rstrip(".")
        raise UsageError(f"{what} no OWNER/NAME of a repository ({reason})") from error


def files_to_push(folder: Path) -> list[Path]:
    """All files in the folder that are not hidden, relative to it."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in found if not any(part.startswith(".") for part in path.parts))


def push(folder: Path, name: str, kind: Kind, private: bool, message: str) -> str:
    """Sends the files of `files_to_push` to the repository `name`, which is made if there is none.
    Returns its address. Other files that are there stay.

    private: a new repository is private. Raises `SynthError` if there is no token, if the token may
    not write there, if the hub cannot be reached, or if a repository that is there is public.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    if get_token() is None:
        raise SynthError(f"--to {name}: there is no token of the Hugging Face hub; {LOGIN}")
    api = HfApi()
    with _told(f"--to {name}", api.endpoint):
        made = api.create_repo(name, repo_type=kind, private=private or None, exist_ok=True)
        if private and not api.repo_info(name, repo_type=kind).private:
            raise UsageError(
                f"--private: {name} is there already, and is public; choose another name, or make "
                "it private in its settings"
            )
        api.upload_folder(
            repo_id=name,
            repo_type=kind,
            folder_path=folder,
            ignore_patterns=HIDDEN,
            commit_message=message,
        )
    return str(made)


def download(name: str, files: list[str], revision: str | None) -> Path:
    """The folder with these files of a model on the hub. What was downloaded before is not
    downloaded again. Raises `SynthError` if there is no such model, or if the hub cannot be
    reached."""
    from huggingface_hub import HfApi, hf_hub_download

    with _told(name, HfApi().endpoint):
        paths = [hf_hub_download(name, file, revision=revision) for file in files]
    return Path(paths[0]).parent


@contextmanager
def _told(what: str, endpoint: str) -> Iterator[None]:
    """Errors of huggingface_hub, as errors that begin with `what`."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HTTPError,  # of httpx, or of httpx2
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except RevisionNotFoundError as error:
        raise SynthError(f"{what}: has no such revision at {endpoint}") from error
    except LocalEntryNotFoundError as error:
        raise SynthError(_unreachable(what, endpoint, error)) from error
    except EntryNotFoundError as error:
        raise SynthError(f"{what}: holds no generator of synth at {endpoint}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        said = error.server_message or error.response.reason_phrase
        if isinstance(error, RepositoryNotFoundError) or status == 404:
            reason = (
                f"there is no such repository or owner at {endpoint}, or the token may not see it"
            )
            raise SynthError(f"{what}: {reason}; check the name, or {LOGIN}") from error
        if status == 401:
            raise SynthError(f"{what}: {endpoint} refuses the token ({said}); {LOGIN}") from error
        if status == 403:
            mend = "use a token with write access, or another OWNER"
            raise SynthError(f"{what}: the token may not do this ({said}); {mend}") from error
        raise SynthError(f"{what}: {endpoint} answered {status} ({said})") from error
    except (HTTPError, OSError) as error:
        if getattr(error, "filename", None):  # a file of this machine
            raise
        raise SynthError(_unreachable(what, endpoint, error)) from error
    except (ValueError, RuntimeError) as error:  # about an answer, about a card, of a transfer
        reason = f"{error} {error.__cause__ or ''}".strip()
        raise SynthError(f"{what}: cannot be sent or read ({reason})") from error


def _unreachable(what: str, endpoint: str, error: Exception) -> str:
    return (
        f"{what}: {endpoint} cannot be reached ({type(error).__name__}: {error}); check the "
        "network, HF_ENDPOINT and HF_HUB_OFFLINE"
    )
