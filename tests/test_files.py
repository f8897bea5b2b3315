"""Outputs are whole or not there, and nothing but what was asked for is touched."""

import hashlib
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support import PROJECT, run_python

from valle_convert.errors import EnvironmentFault, InputError
from valle_convert.files import (
    atomic,
    atomic_output,
    atomic_outputs,
    check_input_file,
    check_outputs,
    is_stream,
    locked_folder,
    read_json_object,
    read_small_file,
    remove_stale,
    sha256_of,
    write_text_atomically,
)


@pytest.fixture(params=["unnamed", "hidden"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to a file: without a name until the end, and hidden."""
    if request.param == "hidden":
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    return str(request.param)


@pytest.mark.usefixtures("way")
class TestRegularFiles:
    def test_a_file_that_came_in_between_stays(self, tmp_path: Path) -> None:
        target = tmp_path / "a.txt"

        def lose() -> None:
            with atomic_output(target, force=False) as file:
                file.write(b"late")
                target.write_text("first")

        with pytest.raises(InputError, match="made by another program in the meantime"):
            lose()
        assert target.read_text() == "first"
        assert list(tmp_path.iterdir()) == [target]

    def test_permissions_are_the_ones_of_the_user_or_of_the_file_before(
        self, tmp_path: Path
    ) -> None:
        before = os.umask(0o027)
        try:
            write_text_atomically(tmp_path / "new", "", force=False)
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
        (tmp_path / "new").chmod(0o600)
        write_text_atomically(tmp_path / "new", "", force=True)
        assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600

    def test_a_link_keeps_pointing_to_what_is_written(self, tmp_path: Path) -> None:
        (tmp_path / "there").mkdir()
        target, link = tmp_path / "there" / "a.txt", tmp_path / "link.txt"
        link.symlink_to(target)
        write_text_atomically(link, "new", force=False)
        write_text_atomically(link, "newer", force=True)
        assert link.is_symlink()
        assert target.read_text() == "newer"

    def test_a_name_may_have_255_bytes_and_no_more(self, tmp_path: Path) -> None:
        write_text_atomically(tmp_path / ("x" * 255), "text", force=False)
        write_text_atomically(tmp_path / ("x" * 255), "text", force=True)
        with pytest.raises(InputError, match="file name too long"):
            write_text_atomically(tmp_path / ("x" * 256), "text", force=False)

    @pytest.mark.parametrize("force", [False, True])
    def test_a_killed_run_leaves_nothing_that_the_next_does_not_remove(
        self, tmp_path: Path, force: bool, way: str
    ) -> None:
        code = (
            "import os, signal, sys, time\n"
            + ("del os.O_TMPFILE\n" if way == "hidden" else "")
            + "from pathlib import Path\nfrom valle_convert.files import atomic_output\n"
            f"with atomic_output(Path(sys.argv[1]), force={force}) as file:\n"
            "    file.write(b'x' * 100_000); file.flush()\n"
            "    print('writing', flush=True); time.sleep(60)\n"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "a.txt")],
            stdout=subprocess.PIPE,
            cwd=PROJECT,
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            during = list(tmp_path.iterdir())
            remove_stale(tmp_path)
            assert list(tmp_path.iterdir()) == during, "what a living run writes was removed"
            process.send_signal(signal.SIGKILL)
        assert len(during) == (way == "hidden")
        write_text_atomically(tmp_path / "b.txt", "", force=False)
        assert [path.name for path in tmp_path.iterdir()] == ["b.txt"]


def test_the_file_on_standard_output_is_not_replaced(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path\nfrom valle_convert.files import *\n"
        "from valle_convert.errors import EnvironmentFault, InputError\n"
        "try: write_text_atomically(Path('/dev/stdout'), 'text', force=True)\n"
        "except InputError as error: print(error)"
    )
    out = tmp_path / "log"
    with out.open("w") as file:
        run_python("-c", code, capture_output=False, stdout=file, check=True)
    assert "is standard output, expected a regular file" in out.read_text()


def test_what_gets_sound_as_it_comes(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "file").touch()
    assert all(map(is_stream, (pipe, Path("/dev/null"), Path("/dev/stdout"))))
    assert not any(map(is_stream, (tmp_path, tmp_path / "file", tmp_path / "nothing")))


def test_links_in_a_circle_are_told(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(InputError, match="too many levels of symbolic links"):
        check_outputs([tmp_path / "a"], force=True)


AS_NOBODY = (
    "import os, sys\nfrom pathlib import Path\nfrom valle_convert.files import *\n"
    "from valle_convert.errors import EnvironmentFault\nos.setresuid(65534, 65534, 65534)\n"
    "try: check_outputs([Path(sys.argv[1])], force=True)\n"
    "except EnvironmentFault as error: print(error)"
)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize(
    ("mode", "words"),
    [(0o1777, "belongs to another user"), (0o700, "permission denied"), (0o755, "is not writable")],
)
def test_what_other_users_own_is_told_before_any_work(mode: int, words: str) -> None:
    # Not in pytest's own folders, which nobody else may enter.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "a.txt").write_text("of root")
        folder.chmod(mode)
        done = run_python("-c", AS_NOBODY, folder / "a.txt", check=True)
    assert words in done.stdout, done


def test_a_folder_takes_one_run_at_a_time(tmp_path: Path) -> None:
    with locked_folder(tmp_path):  # noqa: SIM117 - the second is what is tested
        with pytest.raises(EnvironmentFault, match="Another run"), locked_folder(tmp_path):
            pass
    with locked_folder(tmp_path):
        assert list(tmp_path.iterdir()) == []


def test_names_of_others_are_left_alone(tmp_path: Path) -> None:
    mine = [".valle-convert-notes.partial", ".a.gguf.x.partial", ".valle-convert-", "a.partial"]
    for name in mine:
        (tmp_path / name).write_text("of the user")
    (tmp_path / f"{atomic._PREFIX}{'0' * 16}.partial").symlink_to(tmp_path / "a.partial")
    before = time.monotonic()
    os.mkfifo(tmp_path / f"{atomic._PREFIX}{'1' * 16}.partial")
    remove_stale(tmp_path)
    assert time.monotonic() - before < 10
    assert {name for name in mine if (tmp_path / name).exists()} == set(mine)


def test_files_that_belong_together_appear_together_or_not_at_all(tmp_path: Path) -> None:
    targets = [tmp_path / name for name in ("first", "second", "third")]

    def fail() -> None:
        with atomic_outputs(targets, force=False) as files:
            files[0].write(b"1")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []

    def write_all(force: bool, between: Path | None = None) -> None:
        with atomic_outputs(targets, force=force) as files:
            for i, file in enumerate(files):
                file.write(b"%d" % i)
            assert not any(target.exists() for target in targets) or force
            if between is not None:
                between.write_bytes(b"mine")

    # Names are given from the last to the first: the others have theirs when this one fails.
    with pytest.raises(InputError, match="first was made by another program"):
        write_all(force=False, between=targets[0])
    assert [path.name for path in tmp_path.iterdir()] == ["first"]
    assert targets[0].read_bytes() == b"mine"
    targets[0].unlink()
    write_all(force=False)
    assert [target.read_bytes() for target in targets] == [b"0", b"1", b"2"]
    with pytest.raises(InputError, match="exists"):
        write_all(force=False)
    write_all(force=True)


def test_a_failure_takes_what_was_written_and_leaves_the_link_to_it(tmp_path: Path) -> None:
    main, other = tmp_path / "main", tmp_path / "other"
    link = tmp_path / "link"
    link.symlink_to(other)
    with pytest.raises(InputError), atomic_outputs([main, link], force=False):
        main.write_bytes(b"another program's")  # the last one gets its name first
    assert link.is_symlink()
    assert not other.exists()
    assert main.read_bytes() == b"another program's"


@pytest.mark.parametrize(
    "read", [check_input_file, partial(read_small_file, what="x", max_bytes=9)]
)
def test_what_is_no_file_is_refused_and_not_waited_for(
    read: Callable[[Path], object], tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for name, words in (
            ("nothing", "There is no"),
            ("x" * 300, "too long"),
            (".", "is a directory"),
            ("pipe", "is a pipe"),
            ("socket", "is a socket"),
            ("link", "which does not exist"),
            ("a\0b", "null"),
        ):
            with pytest.raises(InputError, match=words):
                read(tmp_path / name)


def test_a_file_is_hashed_once_and_again_when_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, read = tmp_path / "a", []
    real = hashlib.file_digest

    def hashed(file: Any, name: str) -> object:
        read.append(name)
        return real(file, name)

    monkeypatch.setattr(hashlib, "file_digest", hashed)

    def digest() -> str:
        read.clear()
        return sha256_of(path)

    def expected() -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    path.write_bytes(b"first")
    assert digest() == expected()
    # Of the same size, inode and perhaps time, as a disk with coarse times has it.
    now = path.stat()
    path.write_bytes(b"other")
    os.utime(path, ns=(now.st_atime_ns, now.st_mtime_ns))
    assert digest() == expected()
    os.utime(path, (1, 1))
    assert [digest(), read] == [expected(), ["sha256"]]
    assert [digest(), read] == [expected(), []]
    path.write_bytes(b"third")
    assert [digest(), read] == [expected(), ["sha256"]]


def test_an_interrupt_while_the_flushing_begins_ends_the_program(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from threading import Thread
from valle_convert.files import atomic_output

begin = Thread.start

def interrupted(thread):
    begin(thread)
    raise KeyboardInterrupt

Thread.start = interrupted
with atomic_output(Path({str(tmp_path / "a")!r}), force=False):
    pass
"""
    done = run_python("-c", code, timeout=30)
    assert "KeyboardInterrupt" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_json_is_read_in_the_encodings_that_editors_write(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"é": 1}', encoding=encoding)
    assert read_json_object(path, "list", 100) == {"é": 1}
