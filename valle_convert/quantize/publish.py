"""Uploads a folder of quantized files to the hub in one commit, and compares its digests.

Only the files of the manifest, the manifest itself, SHA256SUMS and the card are sent. The
repository has to exist.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from valle_convert.checkpoint.hub import transport_errors, words_of
from valle_convert.errors import EnvironmentFault, InputError
from valle_convert.files import sha256_of
from valle_convert.quantize.card import CARD
from valle_convert.quantize.manifest import MANIFEST, SUMS
from valle_convert.quantize.release import Release
from valle_convert.wording import listing


@dataclass(frozen=True)
class Published:
    """A commit on the hub, and the sizes of its files."""

    url: str
    commit: str
    files: Mapping[str, int]


def files_of(folder: Release) -> dict[str, Path]:
    """The files to publish, by name."""
    names = [CARD, *(one.name for one in folder.listed), MANIFEST, SUMS]
    return {name: folder.path / name for name in names}


def publish_folder(folder: Release, repository: str, *, message: str | None = None) -> Published:
    """Commit the files of a folder, whose card is written, and compare the hub's digests."""
    from huggingface_hub import CommitOperationAdd, HfApi, constants
    from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars

    if constants.HF_HUB_OFFLINE:
        raise EnvironmentFault(f"Cannot publish to {repository} while HF_HUB_OFFLINE is set.")
    files = files_of(folder)
    kinds = ", ".join(one.main.kind for one in folder.models)
    api = HfApi()
    disable_progress_bars()
    try:
        with _faults(repository):
            made = api.create_commit(
                repo_id=repository,
                operations=[
                    CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(path))
                    for name, path in files.items()
                ],
                commit_message=message or f"Add {kinds}",
            )
            there = {
                info.path: info
                for info in api.get_paths_info(repository, list(files), revision=made.oid)
            }
    finally:
        enable_progress_bars()
    wrong = [name for name, path in files.items() if not _is_same(there.get(name), path)]
    if wrong:
        raise EnvironmentFault(
            f"The hub's copy of {listing(wrong, 2)} differs from the file sent. Delete the commit "
            f"{made.commit_url} and publish again."
        )
    sizes = {name: path.stat().st_size for name, path in files.items()}
    return Published(str(made.commit_url), str(made.oid), sizes)


def _is_same(info: Any, path: Path) -> bool:  # noqa: ANN401 - of a library that is imported late
    """Whether the hub's digest of a file is that of the local file."""
    from huggingface_hub.utils.sha import git_hash

    if info is None:
        return False
    lfs = getattr(info, "lfs", None)
    if lfs is not None:
        return bool(lfs.sha256 == sha256_of(path))
    return bool(getattr(info, "blob_id", None) == git_hash(path.read_bytes()))


@contextmanager
def _faults(repository: str) -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    # An upload in a thread raises the last.
    transport: tuple[type[Exception], ...] = (*transport_errors(), RuntimeError)
    try:
        yield
    except RepositoryNotFoundError as error:
        raise InputError(
            f"{repository} does not exist on the hub, or this user may not see it. Run `hf repo "
            f"create {repository}` or `hf auth login`."
        ) from error
    except HFValidationError as error:
        raise InputError(f"{repository} is not a valid OWNER/NAME.") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise EnvironmentFault(
                f"This user may not write to {repository} ({status}). Check the permissions of "
                "HF_TOKEN (`hf auth whoami`)."
            ) from error
        raise EnvironmentFault(
            f"{repository} was not published: the hub answers {status} ({words_of(error)}). "
            "Nothing was committed; try again later."
        ) from error
    except transport as error:
        if isinstance(error, ValueError) and "metadata" in str(error).lower():
            raise InputError(f"The hub refuses the card: {words_of(error)}.") from error
        raise EnvironmentFault(
            f"{repository} was not published: {words_of(error)}. Check the network and try again."
        ) from error
