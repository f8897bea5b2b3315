"""A folder of quantized files goes to the hub: one commit, and its digests compared afterwards.

Nothing is sent but the files of the manifest, the manifest itself, the sums and the card; and
nothing without the name of a repository, which has to be there already.
"""

from __future__ import annotations

import hashlib
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


@dataclass(frozen=True)
class Published:
    """What the hub has now.

    Attributes:
        files: sent or there already, with their sizes.
    """

    url: str
    commit: str
    files: Mapping[str, int]


def files_of(folder: Release) -> dict[str, Path]:
    """What is published of a folder, by the names that it has there."""
    names = [CARD, *(one.name for one in folder.listed), MANIFEST, SUMS]
    return {name: folder.path / name for name in names}


def publish_folder(folder: Release, repository: str, *, message: str | None = None) -> Published:
    """Commit the files of a folder, whose card is written, and compare what the hub has of them."""
    from huggingface_hub import CommitOperationAdd, HfApi, constants
    from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars

    if constants.HF_HUB_OFFLINE:
        raise EnvironmentFault(
            f"Nothing can be published to {repository} while HF_HUB_OFFLINE is set; unset it."
        )
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
            f"The hub has other bytes of {', '.join(wrong)} than were sent ({made.commit_url}); "
            "publish again, and delete that commit."
        )
    sizes = {name: path.stat().st_size for name, path in files.items()}
    return Published(str(made.commit_url), str(made.oid), sizes)


def _is_same(info: Any, path: Path) -> bool:  # noqa: ANN401 - of a library that is imported late
    """Whether the hub's digest of a file is that of the file here."""
    if info is None:
        return False
    lfs = getattr(info, "lfs", None)
    if lfs is not None:
        return bool(lfs.sha256 == sha256_of(path))
    raw = path.read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % len(raw) + raw).hexdigest()  # noqa: S324 - as git
    return bool(getattr(info, "blob_id", None) == blob)


@contextmanager
def _faults(repository: str) -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    # A thread that uploads ends in the last.
    transport: tuple[type[Exception], ...] = (*transport_errors(), RuntimeError)
    try:
        yield
    except RepositoryNotFoundError as error:
        raise InputError(
            f"There is no model {repository} on the hub that this user may see; make it with "
            f"`hf repo create {repository}`, or log in (HF_TOKEN, hf auth login)."
        ) from error
    except HFValidationError as error:
        raise InputError(f"{repository} is no OWNER/NAME of a repository on the hub.") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise EnvironmentFault(
                f"The hub does not let this user write to {repository} ({status}); check HF_TOKEN "
                "(hf auth whoami), and that its token may write."
            ) from error
        raise EnvironmentFault(
            f"{repository} was not published: the hub answers {status} ({words_of(error)}); "
            "nothing was committed, try again later."
        ) from error
    except transport as error:
        if isinstance(error, ValueError) and "metadata" in str(error).lower():
            raise InputError(f"The hub refuses the card: {words_of(error)}.") from error
        raise EnvironmentFault(
            f"{repository} was not published: {words_of(error)}; check the network, and run the "
            "command again."
        ) from error
