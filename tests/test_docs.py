"""What README and docs tell to type is typed here, block by block, as it stands.

Each page gets a folder with the files that it takes for granted. Its blocks run there in order, by
bash or Python, without a network: the hub is a cache with a small EnCodec under the real name.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile
from make_checkpoint import Shape, make_checkpoint
from support import GOLDEN, PROJECT, describe, executable, install, resave

from valle_convert import Choices, plan_conversion, read_checkpoint, write_gguf
from valle_convert.families import FOLDERS

PAGES = ["README.md", *sorted(str(one.relative_to(PROJECT)) for one in PROJECT.glob("docs/*.md"))]
#: What a page takes for granted.
NEEDED = {
    "README.md": ["model.gguf", "prompt.wav"],
    "docs/python.md": ["ckpt.sft", "prompt.wav"],
    "docs/scale.md": ["model.sft"],
    "docs/codec.md": ["model.gguf", "prompt.wav", "speech.wav"],
    "docs/quantize.md": [
        "model.sft",
        "model-f16.gguf",
        "prompt.wav",
        "a.wav",
        "b.flac",
        "list.tsv",
    ],
    "docs/speak.md": [
        "model.gguf",
        "prompt.wav",
        "speech.wav",
        "out.npz",
        "other.gguf",
        "text.txt",
    ],
}
#: Blocks that other tests run, by how one of their lines begins, and where.
ELSEWHERE = {
    "size: {heads": "tests/checkpoint/test_hf_export.py",
    "python -m miniature serve": "tests/serve/test_serve_command.py",
    "curl http://127.0.0.1:8000/": "tests/serve/test_serve_command.py",
    "valle-convert vallex-checkpoint.pt out.gguf": "tests/cli/test_commands.py",
    "valle-convert scan model.sft": "tests/quantize/test_scan.py",
    "valle-convert evaluate heard/": "tests/quantize/test_quantize_listen.py",
}
#: Pages whose commands have placeholders, or need a LoRA, an old file or a hub.
PAGES_ELSEWHERE = {"docs/inputs.md": "tests/checkpoint/test_hub.py"}
#: Of a line that cannot be run here, and why.
NOT_HERE = {
    "pip install": "what it installs is what runs; its extras are looked up",
    "build_llama_tools": "make setup runs it",
    "make ": "it runs these tests; its target is looked up",
    "hf:": "the hub's own tests have a hub",
    " me/": "tests/quantize/test_publish.py has a hub",
    "snakemake ": "tests/quantize/test_merge.py runs the workflow",
}
_WITH_SHELL = re.compile(r"^(CMAKE_ARGS=|(valle-convert|llama-quantize|pip|make|python|hf) )")
_ROW = re.compile(r"\| `(valle-convert (?:[^`])*)` \|")


@dataclass(frozen=True)
class Block:
    """What stands between two fences, or a command in a table."""

    line: int
    language: str
    text: str


def blocks(page: str) -> Iterator[Block]:
    lines = (PROJECT / page).read_text(encoding="utf-8").splitlines()
    fences = [i for i, line in enumerate(lines) if line.lstrip().startswith("```")]
    for start, end in zip(fences[::2], fences[1::2], strict=True):
        language = lines[start].strip().removeprefix("```")
        yield Block(start + 1, language, "\n".join(lines[start + 1 : end]))
    for i, line in enumerate(lines):
        if (match := _ROW.search(line)) and not re.search(r"\b[A-Z]{4,}\b", match[1]):
            yield Block(i + 1, "row", match[1].replace("\\|", "|"))


def is_shell(block: Block) -> bool:
    return block.language in {"sh", "bash", "row"} or bool(_WITH_SHELL.match(block.text))


def is_run_elsewhere(block: Block) -> bool:
    lines = block.text.splitlines()
    return any(line.startswith(start) for start in ELSEWHERE for line in lines)


def test_every_block_is_run_by_somebody() -> None:
    unknown = [
        f"{page}:{block.line}"
        for page in PAGES
        for block in blocks(page)
        if page not in PAGES_ELSEWHERE and not is_shell(block) and block.language != "python"
        # A drawing has arrows or lines, and is no command.
        if not re.search(r"[─│→]|->", block.text) and not is_run_elsewhere(block)
    ]
    assert unknown == []
    for where in {*ELSEWHERE.values(), *PAGES_ELSEWHERE.values()}:
        assert (PROJECT / where).is_file(), where


def test_every_target_and_extra_that_is_named_is_there() -> None:
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"(?:^|`)make ([a-z-]+)(?:`| +#)", readme, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    text = "\n".join((PROJECT / page).read_text(encoding="utf-8") for page in PAGES)
    for listed in re.findall(r"'\.\[([a-z,]+)\]'", text):
        assert set(listed.split(",")) <= set(project["optional-dependencies"]), listed


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, PROJECT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_extra_is_tried_by_itself() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    tried = {*script("check_wheel").IMPORTS, "dev"}
    assert tried == set(project["optional-dependencies"])


def test_the_command_reference_is_the_programs_own() -> None:
    reference = script("command_reference")
    assert reference.PAGE.read_text(encoding="utf-8") == reference.page(), "run make fixtures"


def test_every_file_of_a_family_is_in_its_table() -> None:
    page = (PROJECT / "docs" / "families.md").read_text(encoding="utf-8")
    for folder in FOLDERS:
        for path in (PROJECT / "valle_convert" / "families" / folder).iterdir():
            name = path.name if path.suffix else f"{path.name}/"
            assert f"`{name}`" in page or name == "__pycache__/", path


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that the pages take for granted."""
    folder = tmp_path_factory.mktemp("prepared")
    quick = Shape(layers=1, audio_tokens=1024, text_tokens=256)
    for name, shape in (
        ("model", replace(quick, dim=256, heads=4)),  # the rows of the K types
        ("ckpt", quick),
    ):
        make_checkpoint(folder / f"{name}.sft", shape)
        say_little(folder / f"{name}.sft")
    for source, name in (("ckpt", "model"), ("ckpt", "other"), ("model", "model-f16")):
        plan = plan_conversion(folder / f"{source}.sft", Choices("f16"))
        write_gguf(plan, folder / f"{name}.gguf")
    rng = np.random.default_rng(0)
    for name in ("prompt.wav", "speech.wav", "a.wav", "b.flac"):
        soundfile.write(folder / name, 0.1 * rng.standard_normal(24_000), 24_000)
    (folder / "list.tsv").write_text("a.wav\tHello world.\nb.flac\tHow are you?\n")
    (folder / "text.txt").write_text("One. Two.\n")
    snapshot = folder / "hub" / "hub" / "models--facebook--encodec_24khz" / "snapshots" / ("a" * 40)
    shutil.copytree(GOLDEN / "encodec-small" / "hf", snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("a" * 40)
    install(folder / "bin")
    executable(folder / "bin" / "ffplay", "exec cat > /dev/null")  # there is nothing to hear with
    run(folder, 'valle-convert speak model.gguf "Hi." --save-codes out.npz --set max_seconds=1')
    return folder


def say_little(checkpoint: Path) -> None:
    """Let its length head stop at once, which means one second a sentence."""
    contents = describe(read_checkpoint(checkpoint)).contents.values()
    (bias,) = [one.source for part in contents for one in part.biases if one.head == "len"]
    resave(checkpoint, lambda tensors: np.add.at(tensors[bias], 10, 100))


def run(prepared: Path, script: str, folder: Path | None = None) -> None:
    """One script in bash, where any failure ends it."""
    tools = next((PROJECT / ".cache" / "llama.cpp").glob("*/bin/llama-quantize")).parent
    environment = {
        **os.environ,
        "HF_HOME": str(prepared / "hub"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(PROJECT),
        "PATH": f"{prepared / 'bin'}:{tools}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder or prepared,
        env=environment,
        capture_output=True,
        text=True,
        errors="replace",  # llama-quantize cuts words of the vocabulary in its log
        check=False,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", [page for page in PAGES if page not in PAGES_ELSEWHERE])
def test_a_page_does_what_it_says(page: str, prepared: Path, tmp_path: Path) -> None:
    for name in NEEDED.get(page, []):
        copy = shutil.copytree if (prepared / name).is_dir() else shutil.copy
        copy(prepared / name, tmp_path / name)
    for block in blocks(page):
        if block.language == "python":
            program = f"from __future__ import annotations\n{block.text}\n"
            (tmp_path / "block.py").write_text(program)
            run(prepared, f"{sys.executable} block.py", tmp_path)
        elif is_shell(block) and not is_run_elsewhere(block):
            if block.language == "row":
                for left in ("out.wav", "hello.wav"):
                    (tmp_path / left).unlink(missing_ok=True)
            run(prepared, runnable(block.text), tmp_path)


def runnable(script: str) -> str:
    """The lines that can be run here."""
    joined = script.replace("\\\n", " ").splitlines()
    return "\n".join(line for line in joined if not any(word in line for word in NOT_HERE))
