"""Exit codes by cause, and what `--help` promises of every command."""

import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support import Cli, Convert, error_of, golden_checkpoint
from typer.models import TyperPath

from valle_convert.cli.app import every_command
from valle_convert.cli.examples import EXAMPLES
from valle_convert.cli.rules import EXCLUDES, NEEDS
from valle_convert.llama.library import load_library

CHECKPOINT = golden_checkpoint("ar-nar-len")
#: Every command that takes a file, with FILE for that file and OUT for what it would write; and
#: options whose files are read in another way.
READERS = {
    "convert": "convert FILE OUT.gguf",
    "convert --config": "convert CHECKPOINT OUT.gguf --config FILE",
    "convert --lora": "convert CHECKPOINT OUT.gguf --lora FILE",
    "convert --tokenizer": "convert CHECKPOINT OUT.gguf --tokenizer FILE",
    "convert --metadata": "convert CHECKPOINT OUT.gguf --metadata FILE",
    "inspect": "inspect FILE",
    "verify": "verify CHECKPOINT FILE",
    "verify, alone": "verify FILE",
    "tokenize": "tokenize FILE a",
    "tokenize --file": "tokenize GGUF --file FILE",
    "speak": "speak FILE Hi. --save-codes OUT.npz",
    "speak --voice": "speak GGUF Hi. --save-codes OUT.npz --voice FILE.npz",
    "speak --codes": "speak GGUF Hi. --save-codes OUT.npz --codes FILE.npz",
    "transcribe": "transcribe GGUF FILE.npz",
    "utterances": "utterances --list FILE OUT --model GGUF",
    "codec": "codec FILE.bin OUT.bin",
    "repair": "repair FILE.gguf OUT.gguf",
    "export": "export FILE.gguf OUT",
    "lora": "lora GGUF FILE.sft OUT.gguf",
    "quantize": "quantize FILE.gguf OUT.gguf Q8_0",
    "evaluate": "evaluate FILE.gguf",
    "scan": "scan FILE.gguf",
    "merge": "merge FILE OUT",
    "voice": "voice FILE.wav OUT.npz",
    "serve": "serve FILE.gguf",
    "imatrix": "imatrix FILE.sft -o OUT.gguf",
    "compare": "compare GGUF FILE.gguf",
    "publish": "publish FILE",
    "check-manifest": "check-manifest FILE",
}


@pytest.fixture
def arguments(converted: Convert, tmp_path: Path) -> Callable[..., list[str]]:
    """`arguments(command, file)`: the words of a line of READERS."""
    gguf = converted("ar-nar-len", "q8_0")

    def words(command: str, file: Path) -> list[str]:
        made = []
        for word in READERS[command].split():
            name, dot, suffix = word.partition(".")
            if name == "FILE":
                path = file.with_name(file.name + dot + suffix)
                if path != file and os.path.lexists(file):
                    file.rename(path)
                made.append(str(path))
            elif name == "OUT":
                made.append(str(tmp_path / f"out{dot}{suffix}"))
            else:
                made.append({"CHECKPOINT": str(CHECKPOINT), "GGUF": str(gguf)}.get(word, word))
        return made

    return words


@pytest.mark.parametrize("command", READERS)
def test_a_file_that_is_not_there_ends_with_2(
    command: str, tmp_path: Path, cli: Cli, arguments: Callable[..., list[str]]
) -> None:
    message = error_of(cli(*arguments(command, tmp_path / "nothing")), 2)
    assert "nothing" in message


def test_every_command_that_takes_a_file_is_tried() -> None:
    takes_one = {
        name
        for name, command in every_command().items()
        if any(isinstance(one.type, TyperPath) and one.opts[0][0] != "-" for one in command.params)
    }
    assert takes_one == {name.split(" ")[0].rstrip(",") for name in READERS}


@pytest.mark.parametrize("option", ["--config", "--metadata"])
def test_a_small_file_is_taken_from_a_pipe_and_not_read_without_end(
    option: str, tmp_path: Path, cli: Cli
) -> None:
    reader, writer = os.pipe()
    os.write(writer, b'{"name": "piped"}')
    os.close(writer)
    out = tmp_path / "o.gguf"
    assert cli(CHECKPOINT, out, option, f"/dev/fd/{reader}", "--verify", "none").code == 0
    os.close(reader)
    message = error_of(cli(CHECKPOINT, out, option, "/dev/zero", "--force"), 2)
    assert "is larger than" in message


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("closed", ["file", "folder"])
def test_a_file_that_may_not_be_read_ends_with_3(closed: str, tmp_path: Path, cli: Cli) -> None:
    file = tmp_path / "folder" / "file"
    file.parent.mkdir()
    shutil.copy(CHECKPOINT, file)
    for parent in file.parents[:4]:
        parent.chmod(0o755)
    assert cli("inspect", file).code == 0  # what is imported on the way is imported by root
    path = file if closed == "file" else file.parent
    path.chmod(0)
    os.seteuid(65534)
    try:
        result = cli("inspect", file)
    finally:
        os.seteuid(0)
        path.chmod(0o755)
    assert "permission denied" in error_of(result, 3)


def test_layers_for_a_gpu_that_llama_cpp_was_not_built_for_end_with_3(
    tmp_path: Path, cli: Cli, converted: Convert, codec: Path
) -> None:
    if load_library().api.llama_supports_gpu_offload():
        pytest.skip("this llama.cpp was built for a GPU")
    gguf, codes, out = converted("ar-nar-len", "q8_0"), tmp_path / "codes.npz", tmp_path / "out"
    assert cli("speak", gguf, "Hi.", "--save-codes", codes, "--set", "max_seconds=1").code == 0
    for command in (
        ("speak", gguf, "Hi.", "--save-codes", f"{out}.npz"),
        ("serve", gguf, "--codec", codec, "--port", 0),
        ("transcribe", gguf, codes),
        ("verify", CHECKPOINT, gguf),
        ("evaluate", gguf, "--checkpoint", CHECKPOINT, "--save-reference", f"{out}.safetensors"),
    ):
        assert "without a GPU backend" in error_of(cli(*command, "--gpu-layers", "all"), 3), command
    assert list(tmp_path.iterdir()) == [codes]


# Help, and the rules of options

COMMANDS = every_command()


@pytest.mark.parametrize("name", COMMANDS)
def test_help_ends_with_examples_that_parse(name: str, cli: Cli) -> None:
    shown = cli(name, "--help").out
    assert "\\b" not in shown
    commands = set()
    for line in EXAMPLES[name].splitlines():
        assert f"{line}\n" in shown
        program, *words = shlex.split(line.split(" | ")[0].split(" < ")[0], comments=True)
        command = words.pop(0) if words[0] in COMMANDS else "convert"
        assert program == "valle-convert"
        commands.add(command)
        COMMANDS[command].make_context(command, words)  # a usage error where it does not parse
    assert name in commands


def test_the_list_of_commands_has_whole_sentences(cli: Cli) -> None:
    shown = cli("--help").out
    for name, command in COMMANDS.items():
        assert f"{name} " in shown
        assert f"{command.help.splitlines()[0].split('. ')[0].rstrip('.')}.\n" in shown


def test_every_rule_is_of_parameters_that_there_are() -> None:
    for command, rules in (*NEEDS.items(), *EXCLUDES.items()):
        known = {one.name for one in COMMANDS[command].params}
        named = {word.partition("=")[0] for text in rules.values() for word in text.split()}
        assert {*rules, *named} <= known, command
