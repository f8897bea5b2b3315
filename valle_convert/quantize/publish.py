"""Publishing a folder of quantized files: its model card, and one commit on the hub.

manifest.json          names, types, sizes, digests
NAME.measurements.json quality and verdict, as `evaluate` left them
the files' keys        name, license, languages, lost and assumed values
  -> README.md         front matter for the hub, a table, a recommendation, commands, checksums

Only the files of the manifest, the manifest itself, SHA256SUMS and the card are sent. The
repository has to exist.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from valle_convert import __version__
from valle_convert.checkpoint.hub import fault_of, transport_errors, words_of
from valle_convert.errors import EnvironmentFault, InputError
from valle_convert.files import check_outputs, sha256_of, write_text_atomically
from valle_convert.gguf_file.keys import (
    SOURCE_ASSUMED_KEY,
    SOURCE_LORA_KEY,
    SOURCE_LOST_KEY,
    SOURCE_SHA256_KEY,
)
from valle_convert.gguf_file.metadata import size_label
from valle_convert.quantize.manifest import MANIFEST, SUMS
from valle_convert.quantize.measurements import Evaluated
from valle_convert.quantize.release import Release, Released
from valle_convert.quantize.render import markdown_words, render
from valle_convert.quantize.report import nearness
from valle_convert.quantize.types import PLAIN_TYPES
from valle_convert.wording import listing

CARD = "README.md"
_MIB = 1 << 20


def card_of(
    folder: Release,
    repository: str | None = None,
    license_: str | None = None,
    base_model: str | None = None,
) -> str:
    """The card; license and base model of the user go before those of the files."""
    models, bundle = folder.models, folder.models[0].bundle
    keys, reports = bundle.main.keys, [one.report for one in models]
    first = models[0]
    for one in models:
        if _source_of(one) != _source_of(first):
            raise InputError(
                f"{one.path} and {first.path} were made of different checkpoints. Publish them "
                "from two folders."
            )
    measured = reports[0].compared
    inputs = [one.compared and one.compared.inputs for one in reports]
    if any(one != inputs[0] for one in inputs):
        raise InputError(
            f"The files of {folder.path} were not measured in one way. Run `evaluate "
            f"{folder.path}` again."
        )
    tensors = [one for file in bundle.files.values() for one in file.tensors.values()]
    tools = {f"{one.main.tool.get('name')} {one.main.tool.get('version')}" for one in models}
    verified = [one.verified.outcome for one in reports if one.verified]
    return render(
        "card.md.jinja",
        {
            "matter": _front_matter(keys, license_, base_model),
            "version": __version__,
            "name": keys.get("general.name") or folder.path.name,
            "description": _text(keys, "general.description"),
            "quantized_by": _text(keys, "general.quantized_by"),
            "bundle": bundle,
            "size_label": size_label(sum(one.n_elements for one in tensors)),
            "keys": keys,
            "measured_on": measured,
            "rows": [_row(one) for one in models],
            "lost": _texts(keys, SOURCE_LOST_KEY),
            "assumed": _texts(keys, SOURCE_ASSUMED_KEY),
            "extras": ["llama", *bundle.family.needs],
            "repository": repository,
            "shown": folder.best() or models[-1],
            "tools": sorted(tools),
            "n_right": verified.count("passed"),
            "reports": reports,
            "sums": SUMS,
            "folder": folder,
        },
    )


def write_card(folder: Release, *said: str | None, force: bool) -> Path:
    """Write the card, `said` as in `card_of`; one that was edited is replaced with `force` only."""
    text, path = card_of(folder, *said), folder.path / CARD
    inputs = [one for name, one in files_of(folder).items() if name != CARD]
    check_outputs([path], force=True, inputs=inputs)
    old = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None
    if old not in (None, text) and not force:
        raise InputError(
            f"{path} is another card. Give --force to replace it, or keep it and publish the "
            "folder with `hf upload`."
        )
    if old != text:
        write_text_atomically(path, text, force=True)
    return path


def _source_of(model: Released) -> list[Any]:
    return [model.bundle.main.keys.get(key) for key in (SOURCE_SHA256_KEY, SOURCE_LORA_KEY)]


def _row(model: Released) -> tuple[str, ...]:
    report = model.report
    return (
        f"`{model.main.name}`",
        report.kind,
        f"{report.n_bytes / _MIB:,.1f} MiB",
        f"{report.bits_per_weight:.2f}",
        "" if report.kl is None else f"{report.kl:.2g}",
        "" if report.top_1 is None else f"{report.top_1:.1%}",
        _use_of(report),
    )


def _use_of(report: Evaluated) -> str:
    if report.is_wrong:
        return "nothing: it failed its checks"
    if report.failures:
        return f"nothing: {markdown_words('; '.join(report.failures))}"
    if report.kind in PLAIN_TYPES:
        return "quantizing and training further; the reference"
    return "not measured" if report.kl is None else nearness(report.kl)[1]


def _front_matter(keys: Mapping[str, Any], license_: str | None, base: str | None) -> str:
    from huggingface_hub import ModelCardData

    base = base or _base_model(keys)
    tags = dict.fromkeys([*_texts(keys, "general.tags"), "gguf", "llama.cpp", "vall-e"])
    return ModelCardData(
        base_model=base,
        base_model_relation="quantized" if base else None,
        language=_texts(keys, "general.languages") or None,
        library_name="valle-convert",
        license=license_ or _text(keys, "general.license"),
        pipeline_tag="text-to-speech",
        tags=list(tags),
    ).to_yaml()


def _base_model(keys: Mapping[str, Any]) -> str | None:
    owner, name = (_text(keys, f"general.base_model.0.{key}") for key in ("organization", "name"))
    if owner and name:
        return f"{owner}/{name}"
    return _text(keys, "general.source.huggingface.repository")


def _text(keys: Mapping[str, Any], name: str) -> str | None:
    """A text; None if the file has something else there."""
    found = keys.get(name)
    return found if isinstance(found, str) else None


def _texts(keys: Mapping[str, Any], name: str) -> list[str]:
    """The texts of a list; none if the file has something else there."""
    found = keys.get(name)
    return [one for one in found if isinstance(one, str)] if isinstance(found, list) else []


@dataclass(frozen=True)
class Published:
    url: str
    commit: str
    files: Mapping[str, int]


def files_of(folder: Release) -> dict[str, Path]:
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
    # Uploads in threads raise RuntimeError.
    transport: tuple[type[Exception], ...] = (*transport_errors(), RuntimeError)
    try:
        yield
    except transport as error:
        if type(error) is ValueError and "metadata" in str(error).lower():
            raise InputError(f"The hub refuses the card: {words_of(error)}.") from error
        remedy = f"run `hf repo create {repository}` or `hf auth login`"
        raise fault_of(error, repository, repository, "was not published", remedy=remedy) from error
