"""Checkpoints on the Hugging Face hub: `hf:OWNER/REPO...` becomes a `Tree` of a commit.

    hf:ecker/vall-e/ar+nar-len-llama-8               a model, by the layout of that repository
    hf:ecker/vall-e@hf                               the folder of a branch
    hf:ecker/vall-e@4f2a91c:models/ckpt/x/fp32.sft   a file or folder of a commit, branch or tag

One request lists the files of the commit; after that, only the needed files of this commit are
downloaded. Cache, endpoint, token and offline mode are those of huggingface_hub. Offline, the
cache's snapshot of the revision is the list.

To look into safetensors on the hub, their headers are enough (`headers_only`).
"""

import difflib
import re
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from valle_convert.checkpoint.folder import HUB_PREFIX, SAFETENSORS_SUFFIXES, HubOrigin, Tree
from valle_convert.checkpoint.safetensors_file import SafetensorsHeader
from valle_convert.errors import EnvironmentFault, InputError, ValleConvertError
from valle_convert.extras import require
from valle_convert.files import describe_os_error
from valle_convert.wording import listing

#: The path of a published model in its repository.
_MODELS = PurePosixPath("models/ckpt")

_LOCATION = re.compile(
    r"hf:(?P<repository>[\w.-]+/[\w.-]+)(/(?P<inside>[^@:]+))?(@(?P<revision>[^:]+))?(:(?P<path>.*))?",
    re.ASCII,
)
_FORMS = "hf:OWNER/REPO/MODEL, hf:OWNER/REPO@REVISION or hf:OWNER/REPO@REVISION:PATH"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
# The first request: a checkpoint's header with its vocabulary has some 60 kB.
_HEAD_BYTES = 1 << 17
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
_TIMEOUT = 30.0  # seconds without an answer


@dataclass(frozen=True)
class Location:
    text: str
    repository: str
    revision: str | None  # a commit, branch or tag; None for the main branch
    path: PurePosixPath  # a file or folder in it; "." for all of it
    is_loose: bool  # whether `path` may also be the name of a model


@dataclass(frozen=True)
class _RemoteFile:
    size: int | None
    sha256: str | None
    cached: Path | None = None


def parse_location(text: str) -> Location:
    """Read `hf:...`, as the user wrote it."""
    match = _LOCATION.fullmatch(text)
    inside, path = (match["inside"], match["path"]) if match else (None, None)
    if match is None or (inside and path) or not text.isprintable():
        raise InputError(f"{text!r} is not a place on the Hugging Face hub; expected {_FORMS}.")
    place = PurePosixPath(path or inside or ".")
    if place.is_absolute() or ".." in place.parts or "\\" in str(place):
        raise InputError(
            f"{text} names the path {str(place)!r}, expected one inside the repository."
        )
    revision = match["revision"]
    if revision is not None and (".." in revision or revision[0] in "/ "):
        raise InputError(
            f"{revision!r} is not a revision of {match['repository']}; give a commit or tag."
        )
    return Location(text, match["repository"], revision, place, is_loose=inside is not None)


class HubTree(Tree):
    """The files of one commit, downloaded on request."""

    def __init__(
        self, location: Location, *, headers_only: bool = False, only_cached: bool = False
    ) -> None:
        self._hub = require("huggingface_hub", "Reading from the Hugging Face hub", extra="hub")
        from huggingface_hub import constants, errors, utils

        self._constants, self._errors = constants, errors
        self._utils: Any = utils
        self._location = location
        self._headers_only = headers_only
        self._got: dict[PurePosixPath, Path] = {}
        self._only_cached = only_cached
        self.commit, files = self._list()
        self.notes = (f"{self.name(PurePosixPath('.'))} is at commit {self.commit}", *self.notes)
        self._files = {PurePosixPath(name): file for name, file in files.items()}
        self._folders = {parent for path in self._files for parent in path.parents}

    def resolve(self) -> PurePosixPath:
        """The file or folder of the location, which may name a model."""
        path = self._location.path
        if path in self._files or path in self._folders:
            return path
        if self._location.is_loose and _MODELS / path in self._folders:
            return _MODELS / path
        raise InputError(self._no_such(path))

    def is_folder(self, path: PurePath) -> bool:
        return path in self._folders

    def files(self, folder: PurePath) -> list[str]:
        return sorted(path.name for path in self._files if path.parent == folder)

    def folders(self, folder: PurePath) -> list[str]:
        found = [path.name for path in self._folders if path.parent == folder]
        return sorted(name for name in found if name)

    def name(self, path: PurePath) -> str:
        revision = self._location.revision
        at = "" if revision is None else f"@{revision}"
        inside = "" if str(path) == "." else f":{path}"
        return f"{HUB_PREFIX}{self._location.repository}{at}{inside}"

    def get(self, path: PurePath) -> Path:
        """A file, from the cache or downloaded; the name of one whose header is enough."""
        place = PurePosixPath(path)
        if place not in self._files:
            raise InputError(self._no_such(place))
        if place not in self._got:
            cached = self._files[place].cached
            if cached is None and self._is_header_enough(place):
                cached = Path(self.name(place))
            self._got[place] = cached or self._download(place)
        return self._got[place]

    def header(self, path: PurePath) -> SafetensorsHeader | None:
        place = PurePosixPath(path)
        if not self._is_header_enough(place):
            return None
        data = self._first_bytes(place, _HEAD_BYTES)
        length = int.from_bytes(data[:8], "little")
        if len(data) - 8 < length <= _MAX_HEADER_BYTES:
            data = self._first_bytes(place, 8 + length)
        return SafetensorsHeader(self.name(place), data[8 : 8 + length])

    @property
    def origin(self) -> HubOrigin:
        digests: dict[Path, str] = {}
        sizes: dict[Path, int] = {}
        for place, path in self._got.items():
            file = self._files[place]
            # The cache names the blob of a large file by its ETag, which is its SHA-256.
            said = file.sha256 or path.resolve().name
            if _SHA256.fullmatch(said):
                digests[path] = said
            if file.size is not None:
                sizes[path] = file.size
        return HubOrigin(self._location.repository, self.commit, digests, sizes)

    # ------------------------------------------------------------------------------ listing

    def _list(self) -> tuple[str, dict[str, _RemoteFile]]:
        where = self._location
        try:
            self._utils.validate_repo_id(where.repository)
        except self._errors.HFValidationError as error:
            raise self._fault(error, None) from error
        if self._only_cached or self._constants.HF_HUB_OFFLINE:
            return self._list_cache("HF_HUB_OFFLINE is set", None)
        try:
            info = self._hub.HfApi().model_info(
                where.repository, revision=where.revision, files_metadata=True, timeout=_TIMEOUT
            )
        except self._errors.HfHubHTTPError as error:
            if error.response.status_code < 500:
                raise self._fault(error, None) from error
            return self._list_cache(f"the hub answers {error.response.status_code}", error)
        except transport_errors() as error:
            return self._list_cache(f"the hub cannot be reached ({words_of(error)})", error)
        files = {}
        for one in info.siblings or ():
            digest = one.lfs.sha256 if one.lfs else None
            size = one.lfs.size if one.lfs else one.size
            name = PurePosixPath(one.rfilename)
            if not name.is_absolute() and ".." not in name.parts:
                files[str(name)] = _RemoteFile(size, digest)
        if not _COMMIT.fullmatch(str(info.sha)):
            raise EnvironmentFault(
                f"{self._constants.ENDPOINT} does not answer as the Hugging Face hub does: it "
                f"gives no commit for {where.repository}; check HF_ENDPOINT."
            )
        return str(info.sha), files

    def _list_cache(
        self, reason: str, error: Exception | None
    ) -> tuple[str, dict[str, _RemoteFile]]:
        """The cached files of the revision."""
        where = self._location
        try:
            found = self._hub.snapshot_download(
                where.repository, revision=where.revision, local_files_only=True
            )
        except self._errors.LocalEntryNotFoundError as missing:
            found = getattr(missing, "snapshot_path", None)  # of one with some of its files
        if found is None:
            revision = where.revision or "main"
            raise EnvironmentFault(
                f"{where.text} is not available: {reason}, and the cache lacks {where.repository} "
                f"at {revision}; with a network, run `hf download {where.repository} --revision "
                f"{revision}`, or give a file."
            ) from error
        folder = Path(found)
        self.notes = (f"{reason}: using the cached {where.repository} at {folder.name[:12]}",)
        files = (path for path in folder.rglob("*") if path.is_file())
        return folder.name, {
            path.relative_to(folder).as_posix(): _RemoteFile(None, None, path) for path in files
        }

    # ------------------------------------------------------------------------------ download

    def _download(self, place: PurePosixPath) -> Path:
        # Requested by branch, the first file makes the cache record the branch's commit, so that it
        # is found offline. The others are requested by commit.
        revision = self.commit if self._got else self._location.revision
        try:
            found = Path(
                self._hub.hf_hub_download(self._location.repository, str(place), revision=revision)
            )
        except transport_errors() as error:
            raise self._fault(error, place) from error
        if self.commit not in found.parts:
            raise EnvironmentFault(
                f"{self.name(PurePosixPath('.'))} has changed from commit "
                f"{self.commit[:12]} to another while it was read; run the command again."
            )
        return found

    def _is_header_enough(self, place: PurePosixPath) -> bool:
        """Whether to read only the header of a file, since the cache does not have it."""
        file = self._files[place]
        if not self._headers_only or file.cached or place.suffix not in SAFETENSORS_SUFFIXES:
            return False
        cached = self._hub.try_to_load_from_cache(
            self._location.repository, str(place), revision=self.commit
        )
        return file.size != 0 and not isinstance(cached, str)

    def _first_bytes(self, place: PurePosixPath, n: int) -> bytes:
        url = self._hub.hf_hub_url(self._location.repository, str(place), revision=self.commit)
        headers = self._utils.build_hf_headers() | {"Range": f"bytes=0-{n - 1}"}
        session, data = self._utils.get_session(), b""
        try:
            with session.stream("GET", url, headers=headers, timeout=_TIMEOUT) as response:
                self._utils.hf_raise_for_status(response)
                for piece in response.iter_bytes():
                    data += piece
                    if len(data) >= n:
                        break  # a mirror may ignore the range
        except transport_errors() as error:
            raise self._fault(error, place) from error
        return data

    # -------------------------------------------------------------------------------- faults

    def _fault(self, error: Exception, place: PurePosixPath | None) -> ValleConvertError:
        where = self._location
        if place is not None:
            return fault_of(error, self.name(place), where.repository)
        return fault_of(error, where.text, where.repository, at=f" at {where.revision or 'main'}")

    def _no_such(self, path: PurePosixPath) -> str:
        """The error for a path that does not exist, with similar ones."""
        where = self._location
        models = self.folders(_MODELS) if where.is_loose and _MODELS in self._folders else []
        names = models or sorted(map(str, self._files))
        near = difflib.get_close_matches(str(path), names, n=3, cutoff=0.4)
        near += [name for name in names if PurePosixPath(name).name == path.name][:3]
        shown = ", ".join(dict.fromkeys(near)) or listing(names) or "none"
        return (
            f"{where.repository} at {where.revision or 'main'} has no "
            f"{'model' if models else 'file or folder'} {path}; "
            f"{'did you mean' if near else 'it has'} {shown}{'?' if near else '.'}"
        )


def transport_errors() -> tuple[type[Exception], ...]:
    """The errors that the library raises if there is no valid answer.

    Its HTTP client has changed over time, and with it the base class of errors.
    """
    from huggingface_hub.errors import HfHubHTTPError

    bases = [base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)]
    return (*bases, OSError, ValueError)


def fault_of(
    error: Any,  # noqa: ANN401 - of a library that is imported late
    what: str,
    repository: str,
    failed: str = "cannot be downloaded",
    at: str = "",
    remedy: str = "check the name and the revision, or set HF_TOKEN if it is private",
) -> ValleConvertError:
    """The error for one of `transport_errors`, by which `what` has `failed`.

    `at` is the revision, if the repository itself was asked for.
    """
    from huggingface_hub import constants, errors

    if isinstance(error, errors.HFValidationError):
        return InputError(f"{repository} is not the name of a repository: {words_of(error)}.")
    if not isinstance(error, errors.HfHubHTTPError):
        local = isinstance(error, errors.LocalEntryNotFoundError)
        words = words_of(error.__cause__ if local and error.__cause__ else error)
        return EnvironmentFault(
            f"{what} {failed}: {words:.90}; check the network and the disk space, and run the "
            "command again."
        )
    url, status = f"{constants.ENDPOINT}/{repository}", error.response.status_code
    if isinstance(error, errors.GatedRepoError):
        return EnvironmentFault(
            f"{repository} is gated; accept its terms at {url}, and set HF_TOKEN to a token of "
            "that account (or run: hf auth login)."
        )
    absent = (errors.RevisionNotFoundError, errors.RepositoryNotFoundError)
    if isinstance(error, absent) or (status == 404 and at):
        return InputError(f"{url} does not exist{at}, or is not visible to you; {remedy}.")
    advice = "check HF_TOKEN (hf auth whoami)" if status in (401, 403) else "try later"
    said = error.server_message or error.response.reason_phrase
    return EnvironmentFault(f"{what} {failed}: the hub answers {status} ({said:.80}); {advice}.")


def words_of(error: BaseException) -> str:
    """An error of a library in one line."""
    if isinstance(error, OSError) and error.strerror:
        return describe_os_error(error)
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:200].rstrip(".")
