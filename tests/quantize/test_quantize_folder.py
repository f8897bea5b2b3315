"""What a run may do to a folder: nothing of the user's is lost, nothing of ours is left, and the
manifest tells what was changed since."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from quantize.making import alive, flip, planner, script, write_utterance
from support import Cli, contents, error_of, wait_for

from valle_convert.errors import InputError
from valle_convert.gguf_file.read import GgufFile
from valle_convert.quantize.manifest import check_manifest, read_manifest
from valle_convert.quantize.tool import Quantizer

QUICK = ("--threads", "1")


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("wide-Q8_0.gguf", ["Q8_0"], "is not overwritten"),
        ("wide-Q8_0.gguf", ["Q8_0", "--resume"], "is not in manifest.json"),
        ("wide-imatrix.gguf", ["Q2_K_S", "--resume"], "exists"),
        ("SHA256SUMS", ["Q8_0"], "not overwritten"),
        ("manifest.json", ["Q8_0"], "not overwritten"),
    ],
)
def test_a_file_of_somebody_else_is_not_replaced(
    cli: Cli, checkpoint_256: Path, tmp_path: Path, name: str, arguments: list[str], words: str
) -> None:
    (tmp_path / name).write_bytes(b"{}")
    result = cli("quantize", checkpoint_256, tmp_path, "--types", *arguments, *QUICK)
    assert words in error_of(result, 2)
    assert ("converting" in result.err) == ("--resume" in arguments)
    assert contents(tmp_path) == {name: b"{}"}


def test_any_name_of_a_source_gives_a_folder_that_is_read_again(
    cli: Cli, gguf_256: Path, tmp_path: Path
) -> None:
    source, folder = tmp_path / "back\\slash\nline.gguf", tmp_path / "out"
    source.symlink_to(gguf_256)
    assert cli("quantize", source, folder, "--types", "Q8_0", *QUICK).code == 0
    assert check_manifest(folder).passed
    subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=folder, check=True)


@pytest.mark.parametrize("manifest", [None, b"", b"[", b'{"schema_version": 1, "files": [{}]}'])
def test_a_folder_whose_manifest_is_missing_or_damaged_takes_force(
    cli: Cli, gguf_256: Path, made: Path, manifest: bytes | None
) -> None:
    path = made / "manifest.json"
    path.unlink() if manifest is None else path.write_bytes(manifest)
    before = contents(made)
    run = ("quantize", gguf_256, made, "--types", "Q8_0", *QUICK)
    assert "give another folder, or --force" in error_of(cli(*run), 2)
    assert contents(made) == before
    result = cli(*run, "--force")
    assert result.code == 0
    assert "no manifest lists: wide-Q4_0.gguf" in result.err
    assert contents(made)["wide-Q4_0.gguf"] == before["wide-Q4_0.gguf"]


def test_a_run_that_breaks_off_leaves_whole_files_and_a_manifest_of_them(
    cli: Cli, gguf_256: Path, made: Path, tmp_path: Path, program: Quantizer
) -> None:
    text = f'case "$*" in *--dry-run*) ;; *Q5_0*) exit 7;; esac\nexec "{program.command[0]}" "$@"'
    tool = script(tmp_path / "tool", text).command[0]
    run = ("quantize", gguf_256, made, "--types", "F16,Q5_0", "--resume", *QUICK)
    error_of(cli(*run, "--llama-quantize", tool), 3)
    assert (made / "wide-F16.gguf").exists()
    assert check_manifest(made).passed


def test_a_run_that_fails_leaves_no_folder_and_one_that_works_may_keep_its_log_there(
    cli: Cli, gguf_256: Path, tmp_path: Path, program: Quantizer
) -> None:
    out = tmp_path / "deep" / "out"
    tool = script(tmp_path / "tool", planner(program) + "exit 7").command[0]
    run = ("quantize", gguf_256, out, "--types", "Q8_0", *QUICK)
    error_of(cli(*run, "--llama-quantize", tool), 3)
    assert not (tmp_path / "deep").exists()
    result = cli(*run, "--log", out / "log")
    assert result.code == 0, result.err
    assert {"log", "wide-Q8_0.gguf"} < set(contents(out))


def test_an_importance_matrix_goes_with_the_files_that_were_made_with_it(
    cli: Cli, gguf_256: Path, checkpoint_256: Path, tmp_path: Path
) -> None:
    out, checkpoint = tmp_path / "out", ("--checkpoint", checkpoint_256)
    matrix = ("--imatrix", write_utterance(tmp_path / "utterances"), *checkpoint, *QUICK)
    assert cli("quantize", gguf_256, out, "--types", "Q2_K,Q4_0", *matrix).code == 0
    assert cli("quantize", gguf_256, out, "--types", "F16", *QUICK).code == 0
    run = ("evaluate", out, *checkpoint, "--utterances", 1, "--prune", "--types")
    for types, left in (("Q2_K,F16", {"Q2_K", "F16", "imatrix"}), ("F16", {"F16"})):
        assert cli(*run, types).code == 0
        assert {path.stem for path in out.glob("*.gguf")} == {f"wide-{one}" for one in left}
        assert check_manifest(out).passed


@contextmanager
def working(
    program: Quantizer, source: Path, out: Path, folder: Path
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A run, and the process of its tool, which writes half a file and goes on for ever."""
    mark = folder / "pid"
    work = f'echo half > "$2"; echo $$ > "{mark}"\nexec sleep 600'
    tool = script(folder / "slow", planner(program) + work).command[0]
    command = [sys.executable, "-m", "valle_convert", "quantize", source, out, "--types", "Q8_0"]
    command += ["--llama-quantize", tool]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        assert wait_for(lambda: mark.exists() and mark.read_text().strip() != "")
        yield run, int(mark.read_text())
    finally:
        run.kill()
        run.communicate()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)]
)
def test_whoever_stops_it_nothing_is_left_and_the_child_is_gone(
    program: Quantizer, checkpoint_256: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """The conversion of a checkpoint lies in a file without a name, too."""
    out = tmp_path / "deep" / "out"
    out.mkdir(parents=True)
    with working(program, checkpoint_256, out, tmp_path) as (run, child):
        run.send_signal(number)
        assert run.wait(timeout=30) == code
    assert wait_for(lambda: not alive(child))
    assert list(out.parent.rglob("*")) == [out]


def test_a_second_run_into_the_same_folder_is_one_clear_sentence(
    program: Quantizer, cli: Cli, gguf_256: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    second = ("quantize", gguf_256, out, "--types", "Q4_0", *QUICK)
    with working(program, gguf_256, out, tmp_path):
        assert "Another run" in error_of(cli(*second), 3)
    assert cli(*second).code == 0


# The manifest


def test_a_folder_as_it_was_made_passes(cli: Cli, made: Path) -> None:
    for path in (made, made / "manifest.json"):
        result = cli("check-manifest", path)
        assert result.code == 0
        assert "PASSED: 2 files, " in result.out


def change_weight(path: Path) -> None:
    flip(path, GgufFile(path).tensors["blk.1.attn_v.weight"].start + 5)


def change_key(path: Path) -> None:
    flip(path, path.read_bytes().index(b"text-to-speech"))


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-32])


@pytest.mark.parametrize(
    ("change", "finding", "words"),
    [
        (change_weight, 1, "wide-Q8_0.gguf: 1 tensor differs: blk.1.attn_v.weight"),
        (change_key, 1, "wide-Q8_0.gguf: the tensors are the same; only the metadata differs"),
        (shorten, 0, " bytes, where the manifest says "),
        (Path.unlink, 0, "wide-Q8_0.gguf: the file is missing\n"),
        (lambda path: flip(path.with_name("SHA256SUMS"), 0), 0, "SHA256SUMS: "),
    ],
)
def test_what_was_changed_since_is_found(
    cli: Cli, made: Path, change: Callable[[Path], None], finding: int, words: str
) -> None:
    change(made / "wide-Q8_0.gguf")
    result = cli("check-manifest", made, "--json")
    assert result.code == 1
    found = json.loads(result.out)["findings"][finding]
    assert words in f"{found['name']}: {found['problem']}\n"


def changed(made: Path, **values: Any) -> Path:
    path = made / "manifest.json"
    value = json.loads(path.read_text())
    value["files"][0] |= values
    path.write_text(json.dumps(value))
    return path


@pytest.mark.parametrize(
    "values",
    [
        {"name": "../secret"},
        {"name": "/etc/passwd"},
        {"name": ".."},
        {"name": ""},
        {"name": 7},
        {"sha256": "ff"},
        {"sha256": None},
        {"bytes": -1},
        {"bytes": "many"},
        {"tensors": 5},
        {"tensors": [{"name": "t"}]},
        {"tool": []},
        {"arguments": [1]},
        {"name": "a\0b"},
        {"sha256": "f" * 64 + "\n"},
    ],
)
def test_a_hostile_manifest_is_refused(cli: Cli, made: Path, values: dict[str, Any]) -> None:
    path = changed(made, **values)
    with pytest.raises(InputError, match="is not a manifest of this program"):
        read_manifest(path)
    error_of(cli("check-manifest", made), 2)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "[" * 100_000, "\0", '{"schema_version": 9}', '{"files": []}', "{"]
)
def test_what_is_no_manifest_is_refused_without_patterns(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=r"^[^$`\\]*$"):
        check_manifest(tmp_path)
