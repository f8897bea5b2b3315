"""`evaluate`: files measured, judged, and what was found kept beside them."""

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from checkpoint.containers import lora_file
from hypothesis import given
from hypothesis import strategies as st
from make_checkpoint import Shape, make_checkpoint
from quantize.conftest import Family
from quantize.making import flip, write_utterance
from support import Cli, contents, error_of, open_reference, with_keys

from valle_convert import read_checkpoint
from valle_convert.families import family_of
from valle_convert.families.bundle import open_files
from valle_convert.gguf_file.header import Key
from valle_convert.gguf_file.read import GgufFile
from valle_convert.quantize import evaluate as evaluate_module
from valle_convert.quantize import tables
from valle_convert.quantize.evaluate import FileSelection, evaluate, prune
from valle_convert.quantize.forms import FORMS
from valle_convert.quantize.limits import Gates
from valle_convert.quantize.manifest import ManifestFile, read_manifest, write_manifest
from valle_convert.quantize.measurements import measurements_in, path_of
from valle_convert.quantize.options import MakeOptions, MeasureOptions, RunLog
from valle_convert.quantize.report import EvaluationReport
from valle_convert.quantize.run import quantize
from valle_convert.quantize.types import FILE_TYPES, parse_types

QUICK = ("--utterances", 1, "--threads", 1)


def outcomes(folder: Path) -> dict[str, str]:
    return {one.name: one.outcome for one in measurements_in(folder)}


@pytest.fixture(scope="module")
def report(evaluated_256: Path, checkpoint_256: Path) -> EvaluationReport:
    files = FileSelection((evaluated_256,), checkpoint=read_checkpoint(checkpoint_256))
    return evaluate(files, Gates(), MeasureOptions(n_utterances=1, threads=1))


@pytest.fixture(scope="module")
def report_of_sets(
    golden_set: Family, tmp_path_factory: pytest.TempPathFactory
) -> EvaluationReport:
    folder = tmp_path_factory.mktemp("sets") / "out"
    shutil.copytree(golden_set.made, folder)
    files = FileSelection((folder,), checkpoint=read_checkpoint(golden_set.checkpoint))
    return evaluate(files, Gates(), MeasureOptions(n_utterances=1, threads=1))


# -------------------------------------------------------------------------------- measured


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("report", {"ar", "nar.1", "nar.2", "mask", "len", "stt"}),
        ("report_of_sets", {"ar", *(f"nar.{i}" for i in range(1, 8))}),
    ],
)
def test_fewer_bits_are_further_off_in_every_head_and_files_are_right(
    name: str, heads: set[str], request: pytest.FixtureRequest
) -> None:
    report: EvaluationReport = request.getfixturevalue(name)
    assert report.passed
    assert "2 verified against the checkpoint" in report.verdict()
    assert [file.kind for file in report.files] == ["Q8_0", "Q4_0"]
    measured = [file.measured for file in report.rows if file.measured]
    f16, q8, q4 = (one.quality for one in measured)
    assert set(q8) == heads | {"all"}
    for head in q8:
        assert f16[head].kl_mean < q8[head].kl_mean < q4[head].kl_mean
        assert f16[head].nmse < q8[head].nmse < q4[head].nmse
        assert q8[head].kl_mean <= q8[head].kl_p99 <= q8[head].kl_max
    assert f16["all"].nmse < 1e-5
    noise = [one.snr_db for one in report.files[1].tensors]
    assert all(decibels is not None and 10 < decibels < 50 for decibels in noise)
    parts = {one.part for one in report.files[0].tensors}
    assert parts == ({""} if name == "report" else {"ar", "nar"})


@pytest.mark.parametrize("version", [5, 7])
def test_a_model_of_one_level_is_timed(version: int, small_checkpoint: Callable[..., Path]) -> None:
    path = small_checkpoint(version=version, levels=1)
    speed = family_of(read_checkpoint(path)).trials.measure_speed(open_reference(path))
    assert speed.ar_step > 0
    assert speed.nar_pass > 0


def test_a_file_in_f16_may_be_what_others_are_compared_with(
    cli: Cli, gguf_256: Path, made: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.gguf"
    assert cli("quantize", gguf_256, copy, "COPY").code == 0
    result = cli("evaluate", gguf_256, copy, made, "--json", *QUICK)
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert "no checkpoint was given" in report["reference"]
    same, q8, q4 = report["files"]
    assert [one["type"] for one in report["files"]] == ["COPY", "Q8_0", "Q4_0"]
    assert same["quality"]["all"]["kl_mean"] < 1e-12
    assert same["greedy"]["ar_equal"] == same["greedy"]["nar_equal"] == 1.0
    assert q8["quality"]["all"]["kl_mean"] < q4["quality"]["all"]["kl_mean"]
    assert report["verdict"].startswith("DONE: 3 files; not judged")
    assert "Give --checkpoint" in error_of(cli("evaluate", made), 2)


def test_given_utterances_are_what_is_measured(
    cli: Cli, gguf_256: Path, made: Path, checkpoint_256: Path, tmp_path: Path
) -> None:
    data = write_utterance(tmp_path / "data", "0")
    write_utterance(data, "01")
    arguments = ["--checkpoint", checkpoint_256, "--data", data, "--json", "--threads", 1]
    result = cli("evaluate", made, "--types", "Q4_0", *arguments)
    report = json.loads(result.out)
    assert report["sequences"].startswith("2 given utterances, ")
    assert report["different_texts"] == 1
    assert [file["type"] for file in report["files"]] == ["Q4_0"]
    # Importance is made of the same.
    out = tmp_path / "o.gguf"
    arguments = ["Q4_0", "--imatrix", data, "--checkpoint", checkpoint_256, "--json"]
    result = cli("quantize", gguf_256, out, *arguments)
    assert json.loads(result.out)["files"][0]["imatrix"] == "wide-imatrix.gguf"
    assert "2 given utterances" in GgufFile(out).keys["quantize.imatrix.dataset"]
    np.savez(data / "3.npz", phonemes=np.array([1, 2]), response=np.full((10, 3), 64))
    for command in (("evaluate", made), ("quantize", gguf_256, tmp_path / "p.gguf", "Q4_0")):
        option = "--data" if command[0] == "evaluate" else "--imatrix"
        refused = cli(*command, option, data, "--checkpoint", checkpoint_256)
        assert "3.npz: the array response has 64" in error_of(refused, 2)


def test_damaged_weights_are_found_whatever_the_limits(
    cli: Cli, family: Family, tmp_path: Path
) -> None:
    """Files that say they come of the checkpoint, with the weights of a matrix turned round."""
    bad, paths = tmp_path / "bad", open_files(family.source).paths
    bad.mkdir()
    for path in paths:
        shutil.copy(path, bad)
    name = "blk.0.ffn_down.weight"
    files = [GgufFile(bad / path.name, allow_part=True) for path in reversed(paths)]
    damaged, tensor = next((one.path, one.tensors[name]) for one in files if name in one.tensors)
    raw = bytearray(damaged.read_bytes())
    weights = np.frombuffer(raw[tensor.start : tensor.start + tensor.n_bytes], np.float16)
    raw[tensor.start : tensor.start + tensor.n_bytes] = weights[::-1].tobytes()
    damaged.write_bytes(raw)
    assert cli("quantize", bad / paths[0].name, tmp_path / "o.gguf", "Q8_0").code == 0
    result = cli("evaluate", tmp_path / "o.gguf", "--checkpoint", family.checkpoint, *QUICK)
    assert result.code == 1, result.err
    assert "FAILED: o.gguf: FAILED: " in result.out
    assert ".." not in result.out.replace("...", "")


def test_a_file_of_a_wrong_structure_is_not_given_to_llama_cpp(
    cli: Cli, made: Path, checkpoint_256: Path
) -> None:
    path = made / "wide-Q4_0.gguf"
    with_keys(path, path, Key("valle.strange", 1, "u32"))
    result = cli("evaluate", path, "--checkpoint", checkpoint_256, *QUICK)
    assert result.code == 1, result
    assert "valle.strange is unexpected" in result.out
    assert "not measured because its structure" in result.err


def test_a_checkpoint_and_loras_that_the_file_was_not_made_of_are_refused(
    cli: Cli, made: Path, tmp_path: Path
) -> None:
    other, lora = tmp_path / "other.sft", tmp_path / "l.sft"
    make_checkpoint(other, Shape(dim=32, heads=2, layers=1, levels=2, audio_tokens=16))
    assert "another checkpoint" in error_of(cli("evaluate", made, "--checkpoint", other), 2)
    lora_file(lora, {"model.layers.0.self_attn.q_proj": (32, 32)})
    merged = tmp_path / "merged.gguf"
    assert cli(other, merged, "--lora", lora).code == 0
    run = ("evaluate", merged, "--checkpoint", other)
    assert "with --lora" in error_of(cli(*run), 2)
    assert "with --lora" in error_of(cli(*run, "--lora", f"{lora}@0.5"), 2)
    moved = tmp_path / "renamed.sft"
    lora.rename(moved)
    result = cli(*run, "--lora", moved, *QUICK)
    assert result.code == 0, result.err


# --------------------------------------------------------------------- kept beside the file


def test_nothing_is_measured_twice_and_runs_join(
    cli: Cli, gguf_256: Path, evaluated: Path, checkpoint_256: Path
) -> None:
    assert cli("quantize", gguf_256, evaluated, "--types", "Q5_0", "--resume").code == 0
    run = ("evaluate", evaluated, "--checkpoint", checkpoint_256, *QUICK)
    result = cli(*run, "--json")
    assert result.code == 0, result.err
    assert "kept the measurements of wide-Q8_0.gguf" in result.err
    assert "measured wide-Q5_0.gguf" in result.err
    assert {file["type"] for file in json.loads(result.out)["files"]} == {"Q4_0", "Q5_0", "Q8_0"}
    # By its bytes, not by its name; and only on the same data.
    shutil.copy(evaluated / "wide-Q4_0.gguf", evaluated / "wide-Q8_0.gguf")
    again = cli("evaluate", evaluated / "wide-Q8_0.gguf", *run[2:])
    assert "measured wide-Q8_0.gguf" in again.err
    other = cli("evaluate", evaluated / "wide-Q5_0.gguf", *run[2:], "--utterances", 2)
    assert "measured wide-Q5_0.gguf" in other.err


@pytest.mark.parametrize(
    "change",
    [
        lambda _text: "",
        lambda _text: "[]",
        lambda _text: "{" * 10_000,
        lambda text: text.replace('"kl_mean": ', '"kl_mean": -'),
        lambda text: text.replace('"best_code": 0.', '"best_code": 7.'),
        lambda text: re.sub(r'"kl_mean": [-\d.e]+', '"kl_mean": NaN', text),
        lambda text: text.replace('"all": {', '"everything": {'),
        lambda text: text.replace('"passed"', '"good"'),
        lambda text: text.replace('"type": "Q4_0"', '"type": "<b>Q4_0</b>"'),
    ],
)
def test_damaged_measurements_are_refused(
    cli: Cli, evaluated: Path, checkpoint_256: Path, change: Callable[[str], str]
) -> None:
    path = evaluated / "wide-Q4_0.measurements.json"
    before = path.read_text()
    path.write_text(change(before))
    assert path.read_text() != before
    run = ("evaluate", evaluated / "wide-Q4_0.gguf", "--checkpoint", checkpoint_256, *QUICK)
    for command in (run, ("check-manifest", evaluated, "--require-passed"), ("publish", evaluated)):
        assert path.name in error_of(cli(*command), 2)


# ---------------------------------------------------------------------------------- limits


def test_verdicts_are_kept_and_require_passed_asks_for_them(
    cli: Cli, gguf_256: Path, evaluated: Path, checkpoint_256: Path
) -> None:
    run = ("evaluate", evaluated, "--checkpoint", checkpoint_256, *QUICK)
    required = ("check-manifest", evaluated, "--require-passed")
    assert set(outcomes(evaluated).values()) == {"passed"}
    assert cli(*required).code == 0
    failed = cli(*run, "--max-kl", "Q4_0=1e-9", "--max-kl", "Q8_0=1", "--json")
    assert failed.code == 1
    report = json.loads(failed.out)
    assert report["passed"] is False
    by_type = {file["type"]: file for file in report["files"]}
    assert by_type["Q4_0"]["limits"]["given"] == {"max_kl": 1e-9}
    assert by_type["Q4_0"]["failures"][0].startswith("KL mean ")
    assert by_type["Q8_0"]["failures"] == []
    assert outcomes(evaluated) == {"wide-Q8_0.gguf": "passed", "wide-Q4_0.gguf": "failed"}
    (finding,) = json.loads(cli(*required, "--json").out)["findings"]
    assert finding["problem"] == f"failed: {by_type['Q4_0']['failures'][0]}"
    assert cli("check-manifest", evaluated).code == 0
    # A file that is made again, of whatever bytes, has not passed.
    again = ("quantize", gguf_256, evaluated, "--types", "Q8_0", "--force", "--tensor-type")
    assert cli(*again, "ffn_up=q4_0").code == 0
    assert "wide-Q8_0.gguf: not judged" in cli(*required).out


def test_other_bytes_than_those_of_the_manifest_fail(
    cli: Cli, evaluated: Path, checkpoint_256: Path
) -> None:
    path = evaluated / "wide-Q8_0.gguf"
    whole = path.read_bytes()
    with_keys(path, path, Key("general.author", "another", "string"))
    run = ("evaluate", evaluated, "--checkpoint", checkpoint_256, *QUICK)
    failed = cli(*run)
    assert failed.code == 1, failed
    assert "wide-Q8_0.gguf differs from manifest.json" in failed.out
    assert outcomes(evaluated) == {"wide-Q8_0.gguf": "failed", "wide-Q4_0.gguf": "passed"}
    path.write_bytes(whole)
    assert cli(*run).code == 0


def test_a_run_that_breaks_off_leaves_no_verdict_of_an_earlier_one(
    cli: Cli, evaluated: Path, checkpoint_256: Path
) -> None:
    run = ("evaluate", evaluated, "--checkpoint", checkpoint_256, *QUICK)
    assert cli(*run, "--max-kl", "Q4_0=1e-9").code == 1

    class StopError(Exception):
        pass

    def stop(_text: str) -> None:
        raise StopError

    files = FileSelection((evaluated,), checkpoint=read_checkpoint(checkpoint_256))
    with pytest.raises(StopError):
        evaluate(files, Gates(), MeasureOptions(n_utterances=2), log=RunLog(message=stop))
    assert set(outcomes(evaluated).values()) == {"not judged"}
    assert all(one.measured and not one.failures for one in measurements_in(evaluated))


def test_a_run_is_no_worse_than_itself_and_worse_than_a_better_one(
    cli: Cli, evaluated: Path, checkpoint_256: Path, tmp_path: Path
) -> None:
    earlier = tmp_path / "earlier.json"
    common = ["evaluate", evaluated, "--types", "Q4_0", "--checkpoint", checkpoint_256, *QUICK]
    assert cli(*common, "--report", earlier).code == 0
    again = [*common, "--no-worse-than", earlier]
    assert cli(*again).code == 0
    report = json.loads(earlier.read_text())
    report["files"][0]["quality"]["all"]["kl_mean"] /= 2
    earlier.write_text(json.dumps(report))
    worse = cli(*again)
    assert worse.code == 1
    assert "allowed" in worse.out
    assert cli(*again[:-1], f"{earlier}@2.1").code == 0
    assert "same --data" in error_of(cli(*again, "--utterances", 3), 2)
    new = ["evaluate", evaluated, "--types", "Q8_0", *again[4:]]
    assert "has no measurements of Q8_0" in error_of(cli(*new), 2)
    other = report | {"checkpoint": {"name": "other.sft", "sha256": "0" * 64}}
    earlier.write_text(json.dumps(other))
    assert "Give a report of the same model" in error_of(cli(*again), 2)
    for text in ("", "[]", "{}", '{"files": [{"type": "Q8_0"}]}', "\0"):
        earlier.write_text(text)
        error_of(cli(*again), 2)


def test_a_folder_is_inspected_a_line_a_file(
    cli: Cli, evaluated: Path, checkpoint_256: Path
) -> None:
    header, _, *rows = cli("inspect", evaluated).out.splitlines()
    assert header.split() == ["file", "type", "size", "verdict"]
    kinds = [["wide-Q4_0.gguf", "Q4_0"], ["wide-Q8_0.gguf", "Q8_0"]]
    assert [row.split()[:2] for row in rows] == kinds
    assert all(" passed " in row for row in rows)
    shown = json.loads(cli("inspect", evaluated, "--json").out)
    assert [Path(one["path"]).name for one in shown] == [name for name, _ in kinds]
    path_of(evaluated / "wide-Q4_0.gguf").unlink()
    _, _, *rows = cli("inspect", evaluated).out.splitlines()
    assert [" not measured " in row for row in rows] == [True, False]
    # A checkpoint in a folder is what the folder stands for, as everywhere.
    (evaluated / "model.sft").symlink_to(checkpoint_256)
    assert "checkpoint" in cli("inspect", evaluated).out.splitlines()[0]


# --------------------------------------------------------------------------------- reports


def test_reports_have_every_column_a_row_a_type_and_say_how_they_were_made(
    report: EvaluationReport, checkpoint_256: Path
) -> None:
    everything, _ = tables.summary(report)
    assert len(everything) == 15
    told = json.loads(FORMS[".json"](report))
    digest = hashlib.sha256(checkpoint_256.read_bytes()).hexdigest()
    assert told["checkpoint"] == {"name": checkpoint_256.name, "sha256": digest}
    markdown, page = (FORMS[form](report) for form in (".md", ".html"))
    for text in (markdown, page):
        words = [f"{name}: " for name in everything]
        words += ["Q8_0", "Q4_0", "nar.2", "PyTorch", "no real speech", report.date, digest]
        assert [one for one in words if one not in text] == []
    for block in re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE):
        assert len({row.count("|") for row in block.splitlines()}) == 1
    assert page.count("<svg") == 3
    assert not re.search(r"<(script|link|img|iframe|object)", page)
    links = re.findall(r"""(?:src|href|data)=["']([^"']*)""", page)
    assert all(link.startswith("#") for link in links)


def test_the_verdict_is_shown_where_reports_cannot_be_written_and_an_old_report_is_gone(
    cli: Cli, evaluated: Path, checkpoint_256: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = tmp_path / "beside" / "r.json"
    report.parent.mkdir()
    report.write_text("of an earlier run")
    run = ("evaluate", evaluated, "--checkpoint", checkpoint_256, *QUICK, "--report", report)
    error_of(cli(*run), 2)
    assert report.exists()
    real = evaluate_module.write_measurements

    def close(main: Path, found: object) -> None:
        real(main, found)  # type: ignore[arg-type]
        shutil.rmtree(report.parent, ignore_errors=True)

    monkeypatch.setattr(evaluate_module, "write_measurements", close)
    for limit, verdict, code in (("1", "PASSED", 3), ("1e-12", "FAILED", 1)):
        report.parent.mkdir(exist_ok=True)
        result = cli(*run, "--force", "--max-kl", limit)
        assert result.code == code, result
        assert verdict in result.out
        assert "kept the measurements of wide-Q8_0.gguf" in result.err
        assert not report.exists()


# ----------------------------------------------------------------------------------- prune


def test_prune_removes_whole_models_of_earlier_types_after_a_verdict_that_passed(
    cli: Cli, family: Family, folder: Path
) -> None:
    (folder / "mine.gguf").write_bytes(b"mine")
    (folder / "notes.txt").write_text("mine")
    before = contents(folder)
    run = ("evaluate", folder, "--types", "Q8_0", "--checkpoint", family.checkpoint, *QUICK)
    others, path = family.files(folder, "Q4_0"), family.files(folder, "Q4_0")[-1]
    failed = cli(*run, "--prune", "--max-kl", "1e-9")
    assert failed.code == 1
    assert f"not removed: {', '.join(sorted(one.name for one in others))}, since" in failed.err
    # With a file that was put under the name of one of ours, all stay.
    flip(path)
    changed = cli(*run, "--prune")
    assert "since its bytes differ from the manifest" in changed.err
    assert all(one.exists() for one in others)
    flip(path)
    assert before.items() <= contents(folder).items()
    result = cli(*run, "--prune")
    assert result.code == 0, result.err
    assert "no manifest lists: mine.gguf" in result.err
    left = {one.name for one in family.files(folder, "Q8_0")}
    assert {file.name for file in read_manifest(folder / "manifest.json")} == left
    others_left = {"manifest.json", "SHA256SUMS", "mine.gguf", "notes.txt"}
    measured = f"{family.stem}-Q8_0.measurements.json"
    assert set(contents(folder)) == {*left, measured, *others_left}


def test_prune_leaves_everything_if_nothing_was_judged(
    cli: Cli, gguf_256: Path, tmp_path: Path
) -> None:
    run = ("quantize", gguf_256, tmp_path / "out", "--types", "COPY,Q8_0,Q4_0", "--threads", 1)
    assert cli(*run).code == 0
    before = contents(tmp_path / "out")
    result = cli("evaluate", tmp_path / "out", "--types", "COPY,Q8_0", "--prune", *QUICK)
    assert "since not everything passed" in result.err
    assert before.items() <= contents(tmp_path / "out").items()


PARTS = ("ar", "nar", "nar-1")


@given(data=st.data())
def test_what_prune_removes_and_the_manifest_afterwards(data: st.DataObject) -> None:
    """Against the rule, word by word, over folders of any kind."""
    parts = st.sampled_from(["a", "b", "b-nar", "b-nar-1", "c", "c-nar", "d"])
    ours = data.draw(st.sets(parts), "ours")
    names = sorted(data.draw(st.sets(parts), "listed") | ours)
    foreign = data.draw(st.sets(parts), "of another source")
    changed = data.draw(st.sets(parts), "changed")
    passed = data.draw(st.booleans(), "passed")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        listed: dict[str, ManifestFile] = {}
        for one in names:
            path = folder / f"{one}.gguf"
            path.write_bytes(one.encode())
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
            source = ("1" if one in foreign - ours else "0") * 64
            listed[path.name] = ManifestFile(
                path.name, "Q8_0", len(one), sha256, source, {}, (), None, ()
            )
            if one in changed:
                path.write_bytes(one.upper().encode())
        write_manifest(folder, listed.values())
        notes = prune(
            folder, {f"{one}.gguf" for one in ours}, {"0" * 64}, PARTS, "" if passed else "no"
        )
        left = {path.stem for path in folder.glob("*.gguf")}
        may = set(names) - ours if passed else set()
        for one in names:
            root = one.split("-")[0]
            together = {other for other in names if other.split("-")[0] == root} - ours
            # Parts whose main file is not there to be removed are files by themselves.
            group = together if root in together else {one}
            assert (one not in left) == (one in may and not group & (foreign | changed))
        assert {file.name for file in read_manifest(folder / "manifest.json")} == {
            f"{one}.gguf" for one in left
        }
        assert all(f"{one}.gguf" in " ".join(notes) for one in set(names) - ours)


# ------------------------------------------------------------------------- every type, slow


@pytest.mark.slow
def test_every_type_that_stock_llama_quantize_lists_is_made_and_judged(
    gguf_256: Path, checkpoint_256: Path, tmp_path: Path
) -> None:
    checkpoint = read_checkpoint(checkpoint_256)
    out = tmp_path / "out"
    made = quantize(
        gguf_256, out, MakeOptions(parse_types(",".join(FILE_TYPES))), checkpoint=checkpoint
    )
    assert made.exit_code == 0, made.verdict()
    assert not any(file.fallbacks for file in made.files)
    report = evaluate(
        FileSelection((out,), checkpoint=checkpoint), Gates(), MeasureOptions(n_utterances=1)
    )
    assert report.passed, report.verdict()
    assert {file.kind for file in report.files} == set(FILE_TYPES)
    assert all(file.measured for file in report.files)
