"""The card of a folder of quantized files: what is in it, what it cost, and which file to take.

manifest.json          names, types, sizes, digests
NAME.measurements.json quality and verdict, as `evaluate` left them
the files' keys        name, license, languages, what the model was made of and has lost
  -> README.md         front matter for the hub, a table, a recommendation, commands, checksums
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from valle_convert import __version__
from valle_convert.errors import InputError
from valle_convert.families.bundle import Bundle, open_files
from valle_convert.gguf_file.keys import SOURCE_ASSUMED_KEY, SOURCE_LOST_KEY, is_converted
from valle_convert.gguf_file.read import GgufFile
from valle_convert.quantize.advice import Advice, use_of
from valle_convert.quantize.evaluate import converted_models_in
from valle_convert.quantize.judge import file_report
from valle_convert.quantize.manifest import (
    MANIFEST,
    SUMS,
    ManifestFile,
    check_manifest,
    read_manifest,
)
from valle_convert.quantize.measurements import Measurements, read_measurements
from valle_convert.quantize.report import FileReport, advice_on, markdown_table
from valle_convert.wording import plural

CARD = "README.md"
_MIB = 1 << 20
_PLAIN = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class CardFile:
    """One type of the card: a file, or the files of a set.

    Attributes:
        files: of the manifest, the main one first.
    """

    files: tuple[ManifestFile, ...]
    bundle: Bundle
    measurements: Measurements

    @property
    def main(self) -> ManifestFile:
        """The file that programs are given."""
        return self.files[0]

    @property
    def report(self) -> FileReport:
        return file_report(self.bundle, self.measurements)

    @property
    def use(self) -> str:
        report = self.report
        if report.faults:
            return "nothing: it failed its checks"
        if self.main.kind in _PLAIN:
            return "quantizing and training further; the reference"
        return "not measured" if report.kl is None else use_of(report.kl)


@dataclass(frozen=True)
class Folder:
    """A folder that `quantize` wrote, read and checked.

    Attributes:
        others: further files of the manifest, such as an importance matrix.
    """

    path: Path
    files: tuple[CardFile, ...]
    others: tuple[ManifestFile, ...]

    @property
    def bundle(self) -> Bundle:
        """One of the models."""
        return self.files[0].bundle

    @property
    def keys(self) -> Mapping[str, Any]:
        return self.bundle.main.keys

    @property
    def measured_on(self) -> tuple[str, str] | None:
        """Reference and utterances of all measurements, in words; None where there are none."""
        found = [one.measurements.predictions for one in self.files]
        return next(((one.reference, one.utterances) for one in found if one), None)

    def advice(self) -> Advice:
        """Which file to take, by the same rule as the report of a run."""
        n_texts = [
            min(one.n_texts, speech.listening.n_texts if speech else one.n_texts)
            for file in self.files
            if (one := file.measurements.predictions)
            for speech in (file.measurements.speech,)
        ]
        return advice_on([one.report for one in self.files], min(n_texts, default=0))

    def listed(self) -> tuple[ManifestFile, ...]:
        return (*(file for one in self.files for file in one.files), *self.others)

    def best(self) -> CardFile | None:
        """The file to take; None where nothing is recommended."""
        taken = self.advice().take
        return next((one for one in self.files if taken and one.main.kind == taken.name), None)


def read_folder(path: Path) -> Folder:
    """Read a folder that `quantize` wrote, and compare it with its manifest."""
    checked = check_manifest(path)
    if not checked.passed:
        found = "; ".join(f"{one.name}: {one.problem.rstrip('.')}" for one in checked.findings[:5])
        raise InputError(
            f"{path} is not as `quantize` wrote it: {found}. Quantize again, and publish that."
        )
    listed = read_manifest(path / MANIFEST)
    by_name = {one.name: one for one in listed if one.is_model}
    if not by_name:
        raise InputError(f"{path} holds no quantized model; give a folder that `quantize` wrote.")
    for name in by_name:
        if not is_converted(GgufFile(path / name, allow_part=True).keys):
            raise InputError(
                f"{path / name} is no converted VALL-E checkpoint; publish files of `quantize`."
            )
    files = []
    for main in converted_models_in(path):
        bundle = open_files(main)
        names = [one.name for one in bundle.paths]
        strange = [one for one in names if one not in by_name]
        if strange:
            raise InputError(
                f"The manifest of {path} does not list {', '.join(strange)} as part of "
                f"{main.name}; quantize again, and publish that."
            )
        own = tuple(by_name.pop(name) for name in names)
        files.append(CardFile(own, bundle, read_measurements(bundle)))
    if by_name:
        raise InputError(
            f"{path} has no main file to {', '.join(sorted(by_name))}; quantize again, and publish "
            "that."
        )
    files.sort(key=lambda one: one.bundle.n_bytes)
    others = tuple(one for one in listed if not one.is_model)
    folder = Folder(path, tuple(files), others)
    keys = {p.key for one in files if (p := one.measurements.predictions)}
    if len(keys) > 1 or (keys and any(one.measurements.predictions is None for one in files)):
        raise InputError(
            f"The files of {path} were not measured in one way; run `evaluate {path}` again."
        )
    return folder


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
    measured = folder.measured_on is not None
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
    yield from markdown_table(
        ("file", "type", "size", "bits", "KL", "top-1", "use it for"),
        [
            (
                f"`{file.main.name}`",
                file.main.kind,
                f"{file.bundle.n_bytes / _MIB:,.1f} MiB",
                f"{report.bits_per_weight:.2f}",
                "" if report.kl is None else f"{report.kl:.2g}",
                "" if report.top_1 is None else f"{report.top_1:.1%}",
                file.use,
            )
            for file in folder.files
            for report in (file.report,)
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
    keys = folder.keys
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
        yield f"* Quantized files were made by {_plain(who)}."
    if folder.measured_on is not None:
        reference, utterances = folder.measured_on
        yield f"* Measured against {_plain(reference)}, on {_plain(utterances)}."
    else:
        yield "* Not measured."
    verified = [one.report.verified for one in folder.files]
    right = sum(one is not None and one.outcome == "passed" for one in verified)
    if right:
        verb = "holds" if right == 1 else "hold"
        yield (
            f"* Verified: {right} of {plural(len(folder.files), 'type')} {verb} the checkpoint's "
            "weights, and stock llama.cpp computes from them what PyTorch does."
        )
    for one in folder.files:
        if one.report.faults:
            yield f"* {one.main.name}: {_plain('; '.join(one.report.faults))}"


def _plain(text: object) -> str:
    """Words of a file in one line, in which Markdown and HTML see nothing but words."""
    line = " ".join(str(text).split())
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", line) if re.search(r"[`<>|\[\]]", line) else line
