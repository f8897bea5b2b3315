"""A bill of materials for a folder of quantized files: CycloneDX, which scanners read.

It says the same as the manifest, in the words of that format: each file with its digest, what it
was made of, and by which program; and the libraries that took part in it. As the manifest, it holds
no times and no paths, so two runs give the same bytes.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from valle_convert import __version__

if TYPE_CHECKING:
    from valle_convert.quantize.manifest import ManifestFile

BILL = "sbom.cdx.json"
#: What has a part in the bytes of a file.
_LIBRARIES = ("gguf", "ml-dtypes", "numpy", "safetensors", "tokenizers", "torch")


def bill_of_materials(files: Iterable[ManifestFile]) -> dict[str, Any]:
    """The bill of files, as plain values (CycloneDX 1.6)."""
    ordered = list(files)
    tools = {json.dumps(dict(file.tool), sort_keys=True): file.tool for file in ordered}
    sources = sorted({file.source_sha256 for file in ordered})
    matrices = sorted({file.imatrix_sha256 for file in ordered if file.imatrix_sha256})
    bill: dict[str, Any] = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "tools": {
                "components": [
                    _component("application", "valle-convert", __version__),
                    *(_tool(tool) for tool in tools.values()),
                ]
            }
        },
        "components": [
            *(_file(file) for file in ordered),
            *(_data("source", digest) for digest in sources),
            *(_data("importance matrix", digest) for digest in matrices),
            *_libraries(),
        ],
        "dependencies": [
            {
                "ref": f"file:{file.name}",
                "dependsOn": [
                    f"source:{file.source_sha256}",
                    *([f"importance matrix:{file.imatrix_sha256}"] if file.imatrix_sha256 else []),
                ],
            }
            for file in ordered
        ],
    }
    digest = hashlib.sha256(json.dumps(bill, sort_keys=True).encode()).hexdigest()
    return {**bill, "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, digest)}"}


def digests_in_bill(bill: object) -> dict[str, str]:
    """File to SHA-256, of an untrusted bill; what is of another form is left out."""
    found: dict[str, str] = {}
    components = bill.get("components") if isinstance(bill, dict) else None
    for one in components if isinstance(components, list) else ():
        if isinstance(one, dict) and one.get("type") == "machine-learning-model":
            hashes = one.get("hashes")
            first = hashes[0] if isinstance(hashes, list) and hashes else None
            if isinstance(first, dict) and isinstance(one.get("name"), str):
                found[one["name"]] = str(first.get("content"))
    return found


def _component(kind: str, name: str, version: str = "", sha256: str = "") -> dict[str, Any]:
    made: dict[str, Any] = {"type": kind, "name": name}
    if version:
        made["version"] = version
    if sha256:
        made["hashes"] = [{"alg": "SHA-256", "content": sha256}]
    return made


def _tool(tool: Mapping[str, str]) -> dict[str, Any]:
    return _component(
        "application", tool.get("name", "unknown"), tool.get("version", ""), tool.get("sha256", "")
    )


def _file(file: ManifestFile) -> dict[str, Any]:
    return {
        **_component("machine-learning-model", file.name, sha256=file.sha256),
        "bom-ref": f"file:{file.name}",
        "properties": [
            {"name": "valle-convert:type", "value": file.kind},
            {"name": "valle-convert:bytes", "value": str(file.n_bytes)},
            {"name": "valle-convert:arguments", "value": " ".join(file.arguments)},
        ],
    }


def _data(what: str, digest: str) -> dict[str, Any]:
    return {**_component("data", what, sha256=digest), "bom-ref": f"{what}:{digest}"}


def _libraries() -> Iterator[dict[str, Any]]:
    for name in _LIBRARIES:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        yield {**_component("library", name, version), "purl": f"pkg:pypi/{name}@{version}"}
