"""Checkpoints on the hub, through the real huggingface_hub, from a small hub on 127.0.0.1."""

import json
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from checkpoint.containers import (
    EXPORT,
    arrays_of,
    deepspeed_training,
    local_training,
    plain,
    sharded,
)
from checkpoint.small_hub import SmallHub, point_to, small_hub
from huggingface_hub import constants
from make_checkpoint import Shape, config_of
from safetensors.numpy import load_file, save_file
from support import PROJECT, Cli, contents, error_of, run_program
from verify.old_files import make_old

from valle_convert.checkpoint.hub import parse_location
from valle_convert.gguf_file.read import GgufFile

SHAPE = Shape(dim=64, layers=1, levels=2, audio_tokens=64)
REPO = "ecker/vall-e"
NAME = "ar+nar-len-llama-8"
OTHER = "ar+nar-llama-8"
WEIGHTS = f"models/ckpt/{NAME}/ckpt/fp32.sft"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A repository with the layout of the published one."""
    folder = tmp_path_factory.mktemp("published")
    plain(folder / WEIGHTS, SHAPE, "f16")
    bare = folder / "models" / "ckpt" / OTHER / "fp32.sft"
    bare.parent.mkdir()
    save_file(arrays_of(SHAPE, "bf16"), bare)
    config = {"models": [config_of(SHAPE)]}
    (folder / "models" / f"config.{OTHER}.yaml").write_text(yaml.safe_dump(config))
    (folder / "README.md").write_text("a card")
    lora = folder / "loras" / "someone" / "lora.sft"
    lora.parent.mkdir(parents=True)
    lora.write_bytes(b"large")
    return contents(folder)


@pytest.fixture
def hub(published: dict[str, bytes], empty_hub: SmallHub) -> SmallHub:
    empty_hub.add(REPO, published)
    return empty_hub


def commit_of(hub: SmallHub, branch: str = "main") -> str:
    return hub.repositories[REPO].branches[branch]


def nothing_left(tmp_path: Path) -> bool:
    return not [path for path in tmp_path.rglob("*") if path.suffix in (".gguf", ".incomplete")]


# ------------------------------------------------------------------------- what is taken


@pytest.mark.parametrize(
    "place", [f"hf:{REPO}/{NAME}", f"hf:{REPO}:{WEIGHTS}", f"hf:{REPO}@main:models/ckpt/{NAME}"]
)
def test_a_model_is_converted_and_says_where_it_is_from(
    place: str, hub: SmallHub, tmp_path: Path, cli: Cli
) -> None:
    out = tmp_path / "out.gguf"
    result = cli(place, out)
    assert result.code == 0, result.err
    keys = GgufFile(out).keys
    assert keys["general.source.huggingface.repository"] == REPO
    assert keys["valle.source.revision"] == commit_of(hub)
    assert keys["valle.source.sha256"] == hub.digest(REPO, WEIGHTS)
    assert keys["valle.source.name"] == "fp32.sft"
    assert f"is at commit {commit_of(hub)}" in result.err
    # Nothing else was downloaded, and the file once.
    fetched = {r.path for r in hub.requests if r.method == "GET" and "/api/" not in r.path}
    assert fetched == {f"/store/{REPO}/{commit_of(hub)}/{WEIGHTS}"}
    assert hub.sent("/store/") == len(hub.repositories[REPO].commits[commit_of(hub)][WEIGHTS])
    assert cli("verify", place, out, "--level", "structure").code == 0
    assert cli("inspect", place).code == 0
    assert hub.sent("/store/") == len(hub.repositories[REPO].commits[commit_of(hub)][WEIGHTS])


def test_a_config_of_the_published_layout_is_found(hub: SmallHub, tmp_path: Path, cli: Cli) -> None:
    result = cli(f"hf:{REPO}/{OTHER}", tmp_path / "out.gguf", "--verify", "none")
    assert result.code == 0, result.err
    assert f"config.{OTHER}.yaml above the checkpoint" in result.err
    assert len({r.path for r in hub.requests if "/store/" in r.path}) == 1


@pytest.mark.parametrize("make", [local_training, deepspeed_training, sharded])
def test_every_form_of_a_folder_is_read(
    make: object, hub: SmallHub, tmp_path: Path, cli: Cli
) -> None:
    folder = tmp_path / "m"
    make(folder / "a", SHAPE, "f16")  # type: ignore[operator]
    hub.add("me/training", contents(folder) | {"big.sft.bak": b"0" * 1000})
    out, local = tmp_path / "hub.gguf", tmp_path / "local.gguf"
    result = cli("hf:me/training:a", out)
    assert result.code == 0, result.err
    assert cli(folder / "a", local).code == 0
    assert GgufFile(out).keys["valle.source.sha256"] == GgufFile(local).keys["valle.source.sha256"]
    assert cli("compare", out, local).code in (0, 1)
    assert not [r for r in hub.requests if "optim" in r.path or "bak" in r.path]


def test_a_tokenizer_beside_the_weights_is_taken(
    hub: SmallHub, published: dict[str, bytes], tmp_path: Path, cli: Cli
) -> None:
    tokenizer = PROJECT / "valle_convert" / "tokenizer" / "data" / "tokenizer.json"
    files = {"fp32.sft": published[WEIGHTS], "tokenizer.json": tokenizer.read_bytes()}
    hub.add("me/one", files)
    result = cli("hf:me/one", tmp_path / "out.gguf", "--verify", "none")
    assert result.code == 0, result.err
    assert "found beside the checkpoint" in result.err


# --------------------------------------------------------------------------- headers alone


def test_inspect_reads_the_header_alone(hub: SmallHub, tmp_path: Path, cli: Cli) -> None:
    flat = plain(tmp_path / "big.sft", Shape(dim=256, layers=4, levels=8, audio_tokens=256))
    hub.add("me/big", {"fp32.sft": flat.read_bytes(), "README.md": b"hello"})
    result = cli("inspect", "hf:me/big")
    assert result.code == 0, result.err
    assert hub.sent("/store/") < 200_000 < flat.stat().st_size
    assert {r.range for r in hub.requests if "/store/" in r.path} == {"bytes=0-131071"}
    assert not (tmp_path / "cache").exists()


def test_a_header_longer_than_the_first_range_is_read_to_its_end(
    hub: SmallHub, tmp_path: Path, cli: Cli
) -> None:
    path = tmp_path / "long.sft"
    metadata = {"config": json.dumps(config_of(SHAPE)), "notes": "x" * 300_000}
    save_file(arrays_of(SHAPE), path, metadata)
    hub.add("me/long", {"long.sft": path.read_bytes()})
    assert cli("inspect", "hf:me/long").code == 0
    assert len([r for r in hub.requests if "/store/" in r.path]) == 2


def test_a_mirror_without_ranges_does_not_send_the_whole_file(
    hub: SmallHub, published: dict[str, bytes], cli: Cli
) -> None:
    hub.add("me/big", {"fp32.sft": published[WEIGHTS] + bytes(1 << 25)})
    hub.knows_ranges = False
    assert cli("inspect", "hf:me/big").code == 0
    assert 0 < hub.sent("/store/") < 1 << 25


def test_where_a_header_does_not_tell_it_the_weights_do(
    hub: SmallHub, tmp_path: Path, cli: Cli
) -> None:
    """Rows without names end where zeros begin, which pad them."""
    arrays, config = load_file(EXPORT / "model.safetensors"), tmp_path / "heads.yaml"
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        arrays[name] = np.pad(arrays[name], ((0, 10), (0, 0)))
    save_file(arrays, tmp_path / "model.safetensors")
    config.write_text("size: {heads: 2, audio_tokens: 64}")
    hub.add("me/unnamed", {"model.safetensors": (tmp_path / "model.safetensors").read_bytes()})
    local, found = (
        json.loads(cli("inspect", place, "--config", config, "--json").out)
        for place in (tmp_path / "model.safetensors", "hf:me/unnamed")
    )
    assert "10 rows of padding dropped" in found["notes"]
    assert found["rows"] == local["rows"]


@pytest.mark.parametrize("raw", [b"short", b"\xff" * 200, b"\x40\0\0\0\0\0\0\0{" + b" " * 90])
def test_what_is_no_safetensors_is_refused_by_its_place(
    raw: bytes, hub: SmallHub, cli: Cli
) -> None:
    hub.add("me/bad", {"fp32.sft": raw})
    message = error_of(cli("inspect", "hf:me/bad"), 2)
    assert message.startswith("hf:me/bad:fp32.sft is not a safetensors file")


# ----------------------------------------------------------------------------- bad networks


def test_a_cut_download_is_resumed_where_it_was_cut(
    hub: SmallHub,
    published: dict[str, bytes],
    tmp_path: Path,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # what is kept before a cut
    hub.cut_after, hub.cuts_left = 10_000, 2
    result = cli(f"hf:{REPO}/{NAME}", tmp_path / "out.gguf", "--verify", "none")
    assert result.code == 0, result.err
    ranges = [r.range for r in hub.requests if "/store/" in r.path and r.method == "GET"]
    assert ranges == [None, "bytes=10000-", "bytes=20000-"]
    assert hub.sent("/store/") == len(published[WEIGHTS])
    assert GgufFile(tmp_path / "out.gguf").keys["valle.source.sha256"] == hub.digest(REPO, WEIGHTS)


def test_wrong_bytes_are_told_by_their_digest(
    hub: SmallHub, published: dict[str, bytes], tmp_path: Path, cli: Cli
) -> None:
    raw = bytearray(published[WEIGHTS])
    raw[-7] ^= 1
    hub.wrong_bytes = bytes(raw)
    message = error_of(cli(f"hf:{REPO}/{NAME}", tmp_path / "out.gguf"), 2)
    assert "is damaged: its sha256 is" in message
    assert f"expected {hub.digest(REPO, WEIGHTS)}" in message
    assert nothing_left(tmp_path)
    hub.gives_digests = False  # the cache knows it by the ETag
    message = error_of(cli(f"hf:{REPO}/{NAME}", tmp_path / "out.gguf"), 2)
    assert "is damaged: its sha256 is" in message


def test_a_file_that_ends_early_is_no_file(
    hub: SmallHub, published: dict[str, bytes], tmp_path: Path, cli: Cli
) -> None:
    hub.wrong_bytes = published[WEIGHTS][:-100]
    message = error_of(cli(f"hf:{REPO}/{NAME}", tmp_path / "out.gguf"), 3)
    assert "cannot be downloaded" in message
    assert nothing_left(tmp_path)


def no_network(_hub: SmallHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    point_to(f"http://127.0.0.1:{port}", monkeypatch)


def offline(_hub: SmallHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def no_hub(hub: SmallHub, monkeypatch: pytest.MonkeyPatch) -> None:
    point_to(f"{hub.url}/elsewhere", monkeypatch)


def gated(hub: SmallHub, _monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories[REPO].is_gated = True


def answering(status: int) -> Callable[[SmallHub, pytest.MonkeyPatch], None]:
    return lambda hub, _: setattr(hub, "status", status)


#: What is wrong, the exit code, and what the sentence says.
FAULTS: dict[str, tuple[Callable[[SmallHub, pytest.MonkeyPatch], None], int, str]] = {
    "500": (answering(500), 3, "the hub answers 500"),
    "503": (answering(503), 3, "the hub answers 503"),
    "403": (answering(403), 3, "the hub answers 403 (out of order); check HF_TOKEN"),
    "no network": (no_network, 3, "the hub cannot be reached"),
    "offline": (offline, 3, "HF_HUB_OFFLINE is set, and the cache lacks ecker/vall-e at main"),
    "no hub": (no_hub, 2, "does not exist at main"),
    "gated": (gated, 3, "is gated; accept its terms at http://127.0.0.1"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_what_the_hub_does_not_give_is_told_in_a_sentence(
    case: str, hub: SmallHub, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, code, words = FAULTS[case]
    change(hub, monkeypatch)
    for command in (("inspect", f"hf:{REPO}/{NAME}"), (f"hf:{REPO}/{NAME}", tmp_path / "o.gguf")):
        assert words in error_of(cli(*command), code)
    assert nothing_left(tmp_path)


def test_no_network_but_in_the_cache(
    hub: SmallHub, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli(f"hf:{REPO}/{NAME}", tmp_path / "a.gguf", "--verify", "none").code == 0
    hub.requests.clear()
    point_to("http://127.0.0.1:9", monkeypatch)
    for revision in ("", "@main", f"@{commit_of(hub)}"):
        out = tmp_path / f"b{revision}.gguf"
        result = cli(f"hf:{REPO}/{NAME}{revision}", out, "--verify", "none")
        assert result.code == 0, result.err
        assert "using the cached" in result.err
        assert "the hub cannot be reached" in result.err
        assert out.read_bytes() == (tmp_path / "a.gguf").read_bytes()
    point_to(hub.url, monkeypatch)  # it could be reached, and is not asked
    offline(hub, monkeypatch)
    result = cli(f"hf:{REPO}/{NAME}", tmp_path / "c.gguf", "--verify", "none")
    assert result.code == 0, result.err
    assert (tmp_path / "c.gguf").read_bytes() == (tmp_path / "a.gguf").read_bytes()
    assert cli("inspect", f"hf:{REPO}/{NAME}").code == 0
    message = error_of(cli("inspect", f"hf:{REPO}/{OTHER}"), 2)
    assert f"has no model {OTHER}; did you mean {NAME}" in message
    message = error_of(cli("inspect", f"hf:{REPO}/{NAME}@v2"), 3)
    assert "the cache lacks ecker/vall-e at v2" in message
    assert not hub.requests


# ------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("command", ["convert", "inspect"])
def test_what_is_not_there_is_answered_with_what_is(
    command: str, hub: SmallHub, tmp_path: Path, cli: Cli
) -> None:
    out = () if command == "inspect" else (tmp_path / "out.gguf",)
    for place, words in {
        "hf:ecker/nothing/x": "ecker/nothing does not exist at main",
        f"hf:{REPO}/ar+nar-len-llama": f"has no model ar+nar-len-llama; did you mean {NAME}",
        f"hf:{REPO}/zzz": f"has no model zzz; it has {NAME}, {OTHER}",
        f"hf:{REPO}:models/ckpt/{NAME}/fp32.sft": WEIGHTS,
        f"hf:{REPO}:x/README.md": "no file or folder x/README.md; did you mean README.md",
        f"hf:{REPO}/{NAME}@v9": "does not exist at v9",
        f"hf:{REPO}:models/ckpt": f"holds 2 models, expected one: {NAME}/ckpt, {OTHER}",
        f"hf:{REPO}:loras/someone": "only a LoRA",
        f"hf:{REPO}:README.md": "is a text file",
    }.items():
        message = error_of(cli(command, place, *out), 2)
        assert words in message
    assert nothing_left(tmp_path)
    assert not hub.sent("/store/") or command == "convert"


@pytest.mark.parametrize(
    "text",
    [
        *"hf: hf:ecker hf:ecker/ hf:/vall-e hf:ecker/vall-e@ hf:ecker/vall-e:../x.sft".split(),
        *r"hf:ecker/vall-e:/etc/passwd hf:ecker/vall-e:a\b hf:ecker/vall-e/../x".split(),
        *"hf:ecker/vall-e/a:b hf:ecker/vall-e@../..:c hf:ecker/vall-e@/etc/passwd".split(),
        *("hf:ecker/vall-e@a\nb:c", "hf:ecker/va ll-e", "hf:a--b/c..d", f"hf:a/{'b' * 97}"),
    ],
)
def test_a_place_of_another_form_asks_nobody(
    text: str, hub: SmallHub, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    error_of(cli("inspect", text), 2)
    error_of(cli(text, tmp_path / "out.gguf"), 2)
    assert not hub.requests
    offline(hub, monkeypatch)
    error_of(cli("inspect", text), 2)


def test_a_private_repository_opens_to_its_token(
    hub: SmallHub, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories[REPO].token = "hf_right"  # noqa: S105 - of the small hub
    command = (f"hf:{REPO}/{NAME}", tmp_path / "out.gguf", "--verify", "none")
    assert "set HF_TOKEN" in error_of(cli(*command), 2)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "set HF_TOKEN" in error_of(cli(*command), 2)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    result = cli(*command)
    assert result.code == 0, result.err
    assert "hf_right" not in result.err
    assert b"hf_right" not in (tmp_path / "out.gguf").read_bytes()
    assert cli("inspect", f"hf:{REPO}/{NAME}").code == 0
    seen = {r.authorization for r in hub.requests if "/store/" in r.path and r.method == "GET"}
    assert seen == {None}  # the token is not for the store


def test_a_hostile_listing_leads_nowhere(hub: SmallHub, tmp_path: Path, cli: Cli) -> None:
    evil = "../../../evil.sft"
    hub.add("me/evil", {evil: b"x", "a/../../b.sft": b"x", "latest": b"../../x", "/abs.sft": b"x"})
    for place in ("hf:me/evil", "hf:me/evil:a", f"hf:me/evil:{evil}"):
        for command in (("inspect", place), (place, tmp_path / "out.gguf")):
            error_of(cli(*command), 2)
    assert not list(tmp_path.parent.rglob("*evil.sft"))


# ------------------------------------------------------------------- the program as it is run


def test_the_environment_is_the_librarys(published: dict[str, bytes], tmp_path: Path) -> None:
    """HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE, as a user sets them."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return run_program(*arguments, env=clean | {"HF_HOME": str(tmp_path / "home")} | more)

    with small_hub() as hub:
        hub.add(REPO, published)
        hub.repositories[REPO].token = "hf_right"  # noqa: S105 - of the small hub
        place, out = f"hf:{REPO}/{NAME}", str(tmp_path / "out.gguf")
        online = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_right"}
        result = run("convert", place, out, "--verify", "none", **online)
        assert result.returncode == 0, result.stderr
        assert (tmp_path / "home" / "hub" / "models--ecker--vall-e").is_dir()
    again = str(tmp_path / "again.gguf")
    result = run("convert", place, again, "--verify", "none", HF_HUB_OFFLINE="1")
    assert result.returncode == 0, result.stderr
    assert Path(again).read_bytes() == Path(out).read_bytes()
    result = run("inspect", place, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "empty"))
    assert result.returncode == 3
    assert result.stderr.count("\n") == 1


def test_every_command_takes_a_gguf_file_of_the_hub(
    hub: SmallHub, published: dict[str, bytes], tmp_path: Path, cli: Cli
) -> None:
    (tmp_path / "fp32.sft").write_bytes(published[WEIGHTS])
    assert cli(tmp_path / "fp32.sft", tmp_path / "m.gguf", "--verify", "none").code == 0
    make_old(tmp_path / "fp32.sft", tmp_path / "old.gguf")
    hub.add("me/files", {n: (tmp_path / n).read_bytes() for n in ("m.gguf", "old.gguf")})
    model, old = "hf:me/files:m.gguf", "hf:me/files:old.gguf"
    place, codes = f"hf:{REPO}/{NAME}", tmp_path / "codes.npz"
    how = ("--set", "max_seconds=0.2", "--language", "en")
    for command in (
        ("verify", model),
        ("verify", place, model, "--level", "structure"),
        ("tokenize", model, "həlˈoʊ"),
        ("speak", model, "--phonemes", "həlˈoʊ", "--save-codes", codes, *how),
        ("transcribe", model, codes),
        ("export", model, tmp_path / "export"),
        ("repair", old, tmp_path / "repaired.gguf", "--verify", "none"),
        ("quantize", model, tmp_path / "q8.gguf", "Q8_0"),
        ("compare", model, tmp_path / "m.gguf", "--exit-code"),
        # And those that take a checkpoint.
        ("imatrix", place, "-o", tmp_path / "i.gguf", "--utterances", "1"),
        ("quantize", place, tmp_path / "q", "--types", "Q8_0"),
    ):
        result = cli(*command)
        assert result.code == 0, (command, result.err)
    assert (tmp_path / "q" / f"{NAME}-Q8_0.gguf").is_file()
    # Each was downloaded once.
    files = (tmp_path / "m.gguf", tmp_path / "old.gguf", tmp_path / "fp32.sft")
    assert hub.sent("/resolve/") + hub.sent("/store/") == sum(one.stat().st_size for one in files)
    assert "is not a GGUF file" in error_of(cli("tokenize", place, "a"), 2)
    assert "no file" in error_of(cli("tokenize", "hf:me/files:n.gguf", "a"), 2)


def test_of_a_vall_e_x_every_file_of_the_set_is_had(
    hub: SmallHub, tmp_path: Path, cli: Cli
) -> None:
    made = tmp_path / "made"
    made.mkdir()
    source = PROJECT / "fixtures" / "golden" / "valle-x-small" / "vallex-checkpoint.pt"
    assert cli(source, made / "x.gguf", "--verify", "none").code == 0
    files = {path.name: path.read_bytes() for path in made.iterdir()}
    hub.add("me/x", files | {"other.bin": b"large"})
    assert cli("verify", source, "hf:me/x:x.gguf", "--level", "structure").code == 0
    assert hub.sent(".gguf") == sum(map(len, files.values()))
    shown = json.loads(cli("inspect", "hf:me/x:x.gguf", "--json").out)
    assert shown["n_bytes"] == sum(map(len, files.values()))
    hub.add("me/alone", files)
    assert "9 files" in cli("inspect", "hf:me/alone:x.gguf").out
    assert "one part of a set" in cli("inspect", "hf:me/alone:x-nar-1.gguf").err
    del files["x-nar-3.gguf"]
    hub.add("me/part", files)
    assert "x-nar-3.gguf" in error_of(cli("tokenize", "hf:me/part:x.gguf", "a"), 2)


def test_locations() -> None:
    found = parse_location("hf:ecker/vall-e@refs/pr/1:models/a b+c.sft")
    assert (found.repository, found.revision) == ("ecker/vall-e", "refs/pr/1")
    assert str(found.path) == "models/a b+c.sft"
