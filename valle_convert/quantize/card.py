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
from valle_convert.families.bundle import Bundle, open_files, part_of
from valle_convert.files import read_json_object
from valle_convert.gguf_file.keys import SOURCE_ASSUMED_KEY, SOURCE_LOST_KEY, is_converted
from valle_convert.gguf_file.read import GgufFile
from valle_convert.quantize.advice import Advice, Choice, advise, use_of
from valle_convert.quantize.manifest import (
    MANIFEST,
    SUMS,
    ManifestFile,
    check_manifest,
    read_manifest,
)
from valle_convert.quantize.types import FILE_TYPES, bits_per_weight
from valle_convert.wording import plural

CARD = "README.md"
REPORT = "report.json"
_MAX_REPORT = 64 << 20
_MIB = 1 << 20
_PLAIN = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class CardFile:
    """One type of the card: a file, or the files of a set.

    Attributes:
        files: of the manifest, the main one first.
        bits: a weight, over all tensors of all files.
        kl: mean divergence in nats; None where it was not measured.
        top_1: part of the predictions whose most likely code is the reference's; likewise.
        verdict: whether it is right by its checkpoint: "passed", "failed", "not verified"; None
            where that was not looked at.
        failures: what was found too bad, in words.
        beyond_noise: in what it says worse than F16, in words; None where nobody listened.
    """

    files: tuple[ManifestFile, ...]
    bits: float
    kl: float | None
    top_1: float | None
    verdict: str | None
    failures: tuple[str, ...]
    beyond_noise: tuple[str, ...] | None

    @property
    def main(self) -> ManifestFile:
        """The file that programs are given."""
        return self.files[0]

    @property
    def n_bytes(self) -> int:
        return sum(one.n_bytes for one in self.files)

    @property
    def passes(self) -> bool:
        """Whether nothing was found wrong with it."""
        return not self.failures and self.verdict != "failed"

    @property
    def use(self) -> str:
        if not self.passes:
            return "nothing: it failed its checks"
        if self.main.kind in _PLAIN:
            return "quantizing and training further; the reference"
        return "not measured" if self.kl is None else use_of(self.kl)


@dataclass(frozen=True)
class Folder:
    """A folder that `quantize` wrote, read and checked.

    Attributes:
        others: further files of the manifest, such as an importance matrix.
        report: the JSON report of the run; None where there is none.
        n_texts: how many different texts files were measured over.
    """

    path: Path
    files: tuple[CardFile, ...]
    others: tuple[ManifestFile, ...]
    bundle: Bundle
    report: Mapping[str, Any] | None
    n_texts: int

    @property
    def keys(self) -> Mapping[str, Any]:
        """Of the main file of one of the models."""
        return self.bundle.main.keys

    def advice(self) -> Advice:
        """Which file to take, by the same rule as the report of a run."""
        return advise(
            [
                Choice(
                    one.main.name,
                    one.n_bytes,
                    one.kl,
                    one.top_1,
                    passes=one.passes,
                    is_heard_apart=bool(one.beyond_noise),
                )
                for one in self.files
            ],
            self.n_texts,
            heard=any(one.beyond_noise is not None for one in self.files),
        )

    def listed(self) -> tuple[ManifestFile, ...]:
        return (*(file for one in self.files for file in one.files), *self.others)

    def best(self) -> CardFile | None:
        """The file to take; None where nothing is recommended."""
        taken = self.advice().take
        return next((one for one in self.files if taken and one.main.name == taken.name), None)


def read_folder(path: Path, report: Path | None = None) -> Folder:
    """Read a folder that `quantize` wrote, and hold it against its manifest."""
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
    bundles = list(_bundles(path, models))
    where = report or path / REPORT
    loaded = _read_report(path, report)
    entries = _entries(loaded, [files[0] for files, _ in bundles], where)
    try:
        n_texts = _n_texts(loaded)
        files = [
            _card_file(files, bundle, entries.get(files[0].sha256)) for files, bundle in bundles
        ]
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"The report {where} is damaged in what it says of these files ({error!r:.60}); give "
            "the one that the run wrote."
        ) from error
    files.sort(key=lambda one: one.n_bytes)
    others = tuple(one for one in listed if one.kind not in FILE_TYPES)
    return Folder(path, tuple(files), others, bundles[0][1], loaded, n_texts)


def _bundles(
    folder: Path, models: Sequence[ManifestFile]
) -> Iterator[tuple[tuple[ManifestFile, ...], Bundle]]:
    """The models of a folder, each with its files of the manifest, the main one first."""
    by_name = {one.name: one for one in models}
    left = set(by_name)
    for model in models:
        main = GgufFile(folder / model.name, allow_part=True)
        if not is_converted(main.keys):
            raise InputError(
                f"{main.path} is no converted VALL-E checkpoint, and its card would say so; "
                "publish files of `quantize`."
            )
        if part_of(main):
            continue
        bundle = open_files(main)
        names = [one.name for one in bundle.paths]
        strange = [one for one in names if one not in left]
        if strange:
            raise InputError(
                f"The manifest of {folder} does not list {', '.join(strange)} as part of "
                f"{model.name}; quantize again, and publish that."
            )
        left -= set(names)
        yield tuple(by_name[name] for name in names), bundle
    if left:
        raise InputError(
            f"{folder} has no main file to {', '.join(sorted(left))}; quantize again, and publish "
            "that."
        )


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


def _card_file(
    files: tuple[ManifestFile, ...], bundle: Bundle, said: Mapping[str, Any] | None
) -> CardFile:
    said = said or {}
    quality = (said.get("quality") or {}).get("all") or {}
    beyond = said.get("beyond_noise")
    tensors = [one for file in bundle.files.values() for one in file.tensors.values()]
    return CardFile(
        files=files,
        bits=bits_per_weight(tensors),
        kl=_number(quality.get("kl_mean"), math.inf),
        top_1=_number(quality.get("best_code"), 1.0),
        verdict=(said.get("verified") or {}).get("outcome"),
        failures=tuple(map(str, said.get("failures") or ())),
        beyond_noise=None if beyond is None else tuple(map(str, beyond)),
    )


def _n_texts(report: Mapping[str, Any] | None) -> int:
    found = (report or {}).get("different_texts", 0)
    if not isinstance(found, int) or isinstance(found, bool) or found < 0:
        raise ValueError(f"different_texts is {found!r:.20}")
    return found


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
        repository: where the files will lie; None where that is not known.
    """

    license: str | None = None
    base_model: str | None = None
    repository: str | None = None


def card_of(folder: Folder, words: CardWords) -> str:
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
    measured = any(one.kl is not None for one in folder.files)
    yield (
        f"A {folder.bundle.family.title} text-to-speech model of {_size_label(folder.bundle)} "
        f"weights for stock llama.cpp, made {'and measured ' if measured else ''}with "
        f"[valle-convert](https://pypi.org/project/valle-convert/) {__version__}."
    )
    description = keys.get("general.description")
    if isinstance(description, str) and description:
        yield ""
        yield _plain(description)
    yield ""
    yield from _table(
        ("file", "type", "size", "bits", "KL", "top-1", "use it for"),
        [
            (
                f"`{one.main.name}`",
                one.main.kind,
                f"{one.n_bytes / _MIB:,.1f} MiB",
                f"{one.bits:.2f}",
                "" if one.kl is None else f"{one.kl:.2g}",
                "" if one.top_1 is None else f"{one.top_1:.1%}",
                one.use,
            )
            for one in folder.files
        ],
    )
    yield ""
    yield (
        "bits: a weight, over everything. KL: mean divergence of its predictions from the "
        "reference's, in nats, over every head. top-1: how many of its most likely codes are the "
        "reference's."
    )
    if len(folder.files[0].files) > 1:
        yield ""
        yield (
            f"Each type is a set of {plural(len(folder.files[0].files), 'file')} that belong "
            "together; the table has the file that programs are given, and the size of all."
        )
    yield ""
    yield "## Which one"
    yield ""
    yield _plain(folder.advice().sentence)
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
    yield from _commands(folder, words)
    yield ""
    yield "## How it was made and verified"
    yield ""
    yield from _provenance(folder)
    yield ""
    yield f"## Checksums (SHA-256; `sha256sum --check {SUMS}`)"
    yield ""
    yield "```"
    for one in folder.listed():
        yield f"{one.sha256}  {one.name}"
    yield "```"


def _size_label(bundle: Bundle) -> str:
    """How many weights the files of a model have, such as 229M."""
    from gguf.utility import model_weight_count_rounded_notation

    files = bundle.files.values()
    n_weights = sum(one.n_elements for file in files for one in file.tensors.values())
    return str(model_weight_count_rounded_notation(n_weights))


def _commands(folder: Folder, words: CardWords) -> Iterator[str]:
    family = folder.bundle.family
    shown = folder.best() or folder.files[-1]
    extras = ",".join(["llama", *family.needs])
    yield "```"
    yield "# in a clone of valle-convert:"
    yield f"CMAKE_ARGS=-DGGML_NATIVE=OFF pip install '.[{extras}]'"
    if words.repository is not None:
        names = " ".join(one.name for one in shown.files)
        yield f"hf download {words.repository} {names} --local-dir ."
    says = '--voice-text "What voice.wav says." ' if "voice_text" in family.speaks_with else ""
    yield (
        f'valle-convert speak {shown.main.name} "Hello world." --voice voice.wav {says}-o hello.wav'
    )
    yield "```"


def _provenance(folder: Folder) -> Iterator[str]:
    keys, report = folder.keys, folder.report or {}
    yield (
        f"* Converted from `{_plain(keys.get('valle.source.name', 'an unknown file'))}` (sha256 "
        f"`{_plain(keys.get('valle.source.sha256', 'unknown'))}`) by valle-convert "
        f"{_plain(keys.get('valle.converter.version', 'of unknown version'))}."
    )
    made_by = [one.main.tool for one in folder.files]
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
    right = sum(one.verdict == "passed" for one in folder.files)
    if right:
        verb = "holds" if right == 1 else "hold"
        yield (
            f"* Verified: {right} of {plural(len(folder.files), 'type')} {verb} the checkpoint's "
            "weights, and stock llama.cpp computes from them what PyTorch does."
        )
    failed = [one for one in folder.files if one.failures]
    yield from (f"* {one.main.name}: {_plain('; '.join(one.failures))}" for one in failed)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _plain(text: object) -> str:
    """Words of a file in one line, in which Markdown and HTML see nothing but words."""
    line = " ".join(str(text).split())
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", line) if re.search(r"[`<>|\[\]]", line) else line
