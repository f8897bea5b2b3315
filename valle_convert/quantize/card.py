"""The card of a folder of quantized files: what is in it, what it cost, and which file to take.

manifest.json     names, types, sizes, digests
a JSON report     quality, and whether each file is right; matched by the digests
the files' keys   name, license, languages, what the model was made of and has lost
  -> README.md    front matter for the hub, a table, a recommendation, commands, checksums
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from valle_convert import __version__
from valle_convert.errors import InputError
from valle_convert.files import read_json_object
from valle_convert.gguf_file.keys import SOURCE_ASSUMED_KEY, SOURCE_LOST_KEY, is_converted
from valle_convert.gguf_file.read import GgufFile
from valle_convert.quantize.manifest import (
    MANIFEST,
    SUMS,
    ManifestFile,
    check_manifest,
    read_manifest,
)
from valle_convert.quantize.types import FILE_TYPES

CARD = "README.md"
REPORT = "report.json"
_MAX_REPORT = 64 << 20
_MIB = 1 << 20
#: What a file is good for, by the mean KL divergence of its predictions in nats: at the first, one
#: in hundreds of best codes changes; at the last, a tenth (docs/quantize-measured.md).
_USES: tuple[tuple[float, str], ...] = (
    (1e-3, "as good as the original"),
    (1e-2, "everyday use"),
    (1e-1, "where memory is short; other takes than the original's"),
    (math.inf, "experiments only"),
)
#: The smallest file up to this divergence is recommended where nobody listened.
_RECOMMENDED_KL = 1e-2
_PLAIN = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class CardFile:
    """One file of the card.

    Attributes:
        entry: of the manifest.
        bits: a weight, over all tensors.
        kl: mean divergence in nats; None where it was not measured.
        best_codes: part of the predictions whose best code is the original's; likewise.
        verdict: whether it is right by its checkpoint: "passed", "failed", "not verified"; None
            where that was not looked at.
        failures: what was found too bad, in words.
    """

    entry: ManifestFile
    bits: float
    kl: float | None
    best_codes: float | None
    verdict: str | None
    failures: tuple[str, ...]

    @property
    def use(self) -> str:
        """What it is for."""
        if self.failures or self.verdict == "failed":
            return "nothing: it failed its checks"
        if self.entry.kind in _PLAIN:
            return "quantizing and training further; the reference"
        if self.kl is None:
            return "not measured"
        kl = self.kl
        return next(words for limit, words in _USES if kl <= limit)


@dataclass(frozen=True)
class Folder:
    """A folder that `quantize` wrote, read and checked.

    Attributes:
        path: of it.
        files: the models, the smallest first.
        others: further files of the manifest, such as an importance matrix.
        keys: of one of the models.
        report: the JSON report of the run; None where there is none.
    """

    path: Path
    files: tuple[CardFile, ...]
    others: tuple[ManifestFile, ...]
    keys: Mapping[str, Any]
    report: Mapping[str, Any] | None

    def best(self) -> CardFile | None:
        """The file to take: the smallest that loses next to nothing; None if none was measured."""
        good = [one for one in self.files if not one.failures and one.verdict != "failed"]
        measured = [one for one in good if one.kl is not None]
        close = [one for one in measured if (one.kl or 0.0) <= _RECOMMENDED_KL]
        if close:
            return min(close, key=lambda one: one.entry.n_bytes)
        return min(measured, key=lambda one: one.kl or 0.0, default=None)


def read_folder(path: Path, report: Path | None = None) -> Folder:
    """Read a folder that `quantize` wrote, and hold it against its manifest.

    Args:
        path: of the folder.
        report: the JSON report of the run; None for `report.json` in the folder, if it is there.

    Raises:
        InputError: it is no such folder, a file is not what the manifest says, or the report is
            of other files.
    """
    checked = check_manifest(path)
    if not checked.passed:
        found = "; ".join(f"{one.name}: {one.problem.rstrip('.')}" for one in checked.findings[:5])
        raise InputError(
            f"{path} is not as `quantize` wrote it: {found}. Quantize again, and publish that."
        )
    listed = read_manifest(path / MANIFEST)
    models = [one for one in listed if one.kind in FILE_TYPES]
    if not models:
        raise InputError(f"{path} holds no quantized model; give a folder that `quantize` wrote.")
    loaded = _read_report(path, report)
    entries = _entries(loaded, models, report or path / REPORT)
    files: list[CardFile] = []
    keys: Mapping[str, Any] = {}
    for model in models:
        file = GgufFile(path / model.name)
        if not is_converted(file.keys):
            raise InputError(
                f"{path / model.name} is no converted VALL-E checkpoint, and its card would say "
                "so; publish files of `quantize`."
            )
        keys = file.keys
        n_weights = sum(tensor.n_elements for tensor in file.tensors.values())
        n_bytes = sum(tensor.n_bytes for tensor in file.tensors.values())
        try:
            files.append(_card_file(model, 8 * n_bytes / n_weights, entries.get(model.sha256)))
        except (AttributeError, TypeError, ValueError, OverflowError) as error:
            raise InputError(
                f"The report {report or path / REPORT} is damaged in what it says of {model.name} "
                f"({error!r:.60}); give the one that the run wrote."
            ) from error
    files.sort(key=lambda one: one.entry.n_bytes)
    others = tuple(one for one in listed if one.kind not in FILE_TYPES)
    return Folder(path, tuple(files), others, keys, loaded)


def _read_report(folder: Path, given: Path | None) -> Mapping[str, Any] | None:
    path = folder / REPORT if given is None else given
    if given is None and not path.is_file():
        return None
    loaded = read_json_object(path, "report", _MAX_REPORT)
    if not isinstance(loaded.get("files"), list):
        raise InputError(
            f"The report {path} is none that `quantize --report {REPORT}` wrote; give that one."
        )
    return loaded


def _entries(
    report: Mapping[str, Any] | None, models: Sequence[ManifestFile], where: Path
) -> dict[str, Mapping[str, Any]]:
    """The report's files by their digests; those of the folder have to be in it."""
    if report is None:
        return {}
    found: dict[str, Mapping[str, Any]] = {
        str(one.get("sha256")): one for one in report["files"] if isinstance(one, dict)
    }
    missing = [one.name for one in models if one.sha256 not in found]
    if missing:
        raise InputError(
            f"The report {where} is not of these files: {', '.join(missing[:5])} "
            f"{'is' if len(missing) == 1 else 'are'} not in it, by their sha256; give the report "
            "of the run that made them."
        )
    return found


def _card_file(entry: ManifestFile, bits: float, said: Mapping[str, Any] | None) -> CardFile:
    said = said or {}
    quality = (said.get("quality") or {}).get("all") or {}
    return CardFile(
        entry=entry,
        bits=bits,
        kl=_number(quality.get("kl_mean"), math.inf),
        best_codes=_number(quality.get("best_code"), 1.0),
        verdict=(said.get("verified") or {}).get("outcome"),
        failures=tuple(map(str, said.get("failures") or ())),
    )


def _number(value: Any, highest: float) -> float | None:  # noqa: ANN401 - of a JSON file
    """Of an untrusted report; None for what was not finite when it was written."""
    if value is None:
        return None
    number = float(value)
    if not 0 <= number <= highest or number == math.inf:
        raise ValueError(f"{number} is out of its range")
    return number


# ------------------------------------------------------------------------------ the card


@dataclass(frozen=True)
class CardWords:
    """What the user says for the card; None for what the files say.

    Attributes:
        license: an SPDX word, or `other`.
        base_model: `OWNER/NAME` on the hub.
        repository: where the files will lie; None where that is not known.
    """

    license: str | None = None
    base_model: str | None = None
    repository: str | None = None


def card_of(folder: Folder, words: CardWords) -> str:
    """The README.md of a folder."""
    import yaml

    matter = yaml.safe_dump(
        _front_matter(folder, words), sort_keys=False, allow_unicode=True, default_flow_style=False
    )
    return f"---\n{matter}---\n\n" + "\n".join(_body(folder, words)) + "\n"


def _front_matter(folder: Folder, words: CardWords) -> dict[str, Any]:
    keys = folder.keys
    matter: dict[str, Any] = {}
    base = words.base_model or _base_model(keys)
    if base is not None:
        matter["base_model"] = base
        matter["base_model_relation"] = "quantized"
    matter["pipeline_tag"] = "text-to-speech"
    matter["library_name"] = "valle-convert"
    license_ = words.license or keys.get("general.license")
    if isinstance(license_, str):
        matter["license"] = license_
    if languages := _words(keys, "general.languages"):
        matter["language"] = languages
    tags = [*_words(keys, "general.tags"), "gguf", "llama.cpp", "vall-e"]
    matter["tags"] = list(dict.fromkeys(tags))
    return matter


def _words(keys: Mapping[str, Any], name: str) -> list[str]:
    """The texts of a list; none where a file has something else there."""
    found = keys.get(name)
    return [one for one in found if isinstance(one, str)] if isinstance(found, list) else []


def _base_model(keys: Mapping[str, Any]) -> str | None:
    owner, name = (keys.get(f"general.base_model.0.{key}") for key in ("organization", "name"))
    if isinstance(owner, str) and isinstance(name, str):
        return f"{owner}/{name}"
    repository = keys.get("general.source.huggingface.repository")
    return repository if isinstance(repository, str) else None


def _body(folder: Folder, words: CardWords) -> Iterator[str]:
    keys = folder.keys
    name = keys.get("general.name") or folder.path.name
    yield f"# {_plain(name)} in GGUF"
    yield ""
    yield (
        f"A VALL-E text-to-speech model of {_plain(keys.get('general.size_label', 'some'))} "
        "weights for stock llama.cpp, made and measured with "
        f"[valle-convert](https://pypi.org/project/valle-convert/) {__version__}."
    )
    description = keys.get("general.description")
    if isinstance(description, str) and description:
        yield ""
        yield _plain(description)
    yield ""
    yield from _table(
        ("file", "type", "size", "bits", "KL", "best codes", "use it for"),
        [
            (
                f"`{one.entry.name}`",
                one.entry.kind,
                f"{one.entry.n_bytes / _MIB:,.1f} MiB",
                f"{one.bits:.2f}",
                "" if one.kl is None else f"{one.kl:.2g}",
                "" if one.best_codes is None else f"{one.best_codes:.1%}",
                one.use,
            )
            for one in folder.files
        ],
    )
    yield ""
    yield (
        "bits: a weight, over the whole file. KL: mean divergence of its predictions from the "
        "reference's, in nats, over every head. best codes: how many of its most likely codes are "
        "the reference's."
    )
    yield ""
    yield "## Which one"
    yield ""
    yield _recommendation(folder)
    lost, assumed = _words(keys, SOURCE_LOST_KEY), _words(keys, SOURCE_ASSUMED_KEY)
    if lost or assumed:
        yield ""
        yield "## What to know of the model"
        yield ""
        yield from (f"* Lost on the way to its source: {_plain(one)}." for one in lost)
        yield from (f"* Assumed, as its source did not say: {_plain(one)}." for one in assumed)
    yield ""
    yield "## How to run it"
    yield ""
    file = (folder.best() or folder.files[0]).entry.name
    yield "```"
    yield "CMAKE_ARGS=-DGGML_NATIVE=OFF pip install 'valle-convert[llama,speech]'"
    if words.repository is not None:
        yield f"hf download {words.repository} {file} --local-dir ."
    yield f'valle-convert speak {file} "Hello world." --voice voice.wav -o hello.wav'
    yield "```"
    yield ""
    yield "## How it was made and verified"
    yield ""
    yield from _provenance(folder)
    yield ""
    yield f"## Checksums (SHA-256; `sha256sum --check {SUMS}`)"
    yield ""
    yield "```"
    for one in (*(file.entry for file in folder.files), *folder.others):
        yield f"{one.sha256}  {one.name}"
    yield "```"


def _recommendation(folder: Folder) -> str:
    heard = (folder.report or {}).get("recommendation")
    if isinstance(heard, str) and heard:
        return _plain(heard)
    best = folder.best()
    if best is None:
        return (
            "None of the files was measured, so nothing is recommended; `valle-convert quantize "
            "--checkpoint` measures."
        )
    kl = best.kl or 0.0
    if kl <= _RECOMMENDED_KL:
        return (
            f"`{best.entry.name}`: the smallest file whose predictions stay within "
            f"{_RECOMMENDED_KL:g} nats of the reference's on average ({kl:.2g})."
        )
    return (
        f"`{best.entry.name}`, with {kl:.2g} nats from the reference, which is more than the "
        f"{_RECOMMENDED_KL:g} that pass unnoticed: of these files none does; it is the closest."
    )


def _provenance(folder: Folder) -> Iterator[str]:
    keys, report = folder.keys, folder.report or {}
    yield (
        f"* Converted from `{_plain(keys.get('valle.source.name', 'an unknown file'))}` (sha256 "
        f"`{_plain(keys.get('valle.source.sha256', 'unknown'))}`) by valle-convert "
        f"{_plain(keys.get('valle.converter.version', 'of unknown version'))}."
    )
    made_by = [one.entry.tool for one in folder.files]
    tools = {f"{tool.get('name')} {tool.get('version')}" for tool in made_by}
    yield f"* Quantized by {_plain(', '.join(sorted(tools)))}."
    who = keys.get("general.quantized_by")
    if isinstance(who, str):
        yield f"* Quantized by the hands of {_plain(who)}."
    if report.get("reference"):
        yield (
            f"* Measured against {_plain(report['reference'])}, on "
            f"{_plain(report.get('sequences') or 'unknown inputs')}."
        )
    else:
        yield "* Not measured."
    right = [one.entry.name for one in folder.files if one.verdict == "passed"]
    if right:
        yield (
            f"* Verified: {len(right)} of {len(folder.files)} files hold the checkpoint's weights, "
            "and stock llama.cpp computes from them what PyTorch does."
        )
    failed = [one for one in folder.files if one.failures]
    yield from (f"* {one.entry.name}: {_plain('; '.join(one.failures))}" for one in failed)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _plain(text: object) -> str:
    """Words of a file in one line, in which Markdown and HTML see nothing but words."""
    line = " ".join(str(text).split())
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", line) if re.search(r"[`<>|\[\]]", line) else line
