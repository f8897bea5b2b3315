"""A copy of a folder on a disk that fails: the large files of it cannot be read to their end.

    python scripts/failing_disk.py FOLDER MOUNT PART

It speaks the kernel's FUSE protocol itself, in its oldest and smallest form, so that nothing has to
be installed; it needs root. Reads of files larger than a megabyte that reach beyond PART (0 to 1)
of them get EIO, which is what a broken disk gives. It ends when MOUNT is unmounted.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import sys
from pathlib import Path

_IN = struct.Struct("<IIQQIIII")  # length, opcode, unique, node, uid, gid, pid, padding
_OUT = struct.Struct("<IiQ")  # length, error, unique
_ATTR = struct.Struct("<6Q10I")
_LOOKUP, _FORGET, _GETATTR, _OPEN, _READ = 1, 2, 3, 14, 15
_STATFS, _RELEASE, _FLUSH, _INIT = 17, 18, 25, 26
_OPENDIR, _READDIR, _RELEASEDIR, _INTERRUPT, _DESTROY, _BATCH_FORGET = 27, 28, 29, 36, 38, 42
_READ_ONLY, _LARGE = 1, 1 << 20


class Disk:
    """Answers the kernel's questions; a node is a path below the folder."""

    def __init__(self, folder: Path, part: float) -> None:
        self._part = part
        self._paths = [folder, folder]  # the root is node 1
        self._nodes: dict[Path, int] = {folder: 1}

    def answer(self, opcode: int, node: int, data: bytes) -> bytes:
        """The reply to a request; an `OSError` is replied as its errno."""
        path = self._paths[node] if node < len(self._paths) else self._paths[1]
        if opcode == _INIT:
            return struct.pack("<IIIIHHIIHHI28x", 7, 31, 1 << 17, 0, 12, 10, 1 << 17, 1, 32, 0, 0)
        if opcode == _LOOKUP:
            found = path / os.fsdecode(data.rstrip(b"\0"))
            attributes = self._attributes(found)
            number = self._node(found)
            return struct.pack("<4QII", number, 0, 1, 1, 0, 0) + attributes
        if opcode == _GETATTR:
            return struct.pack("<QII", 1, 0, 0) + self._attributes(path)
        if opcode in (_OPEN, _OPENDIR):
            return struct.pack("<QII", 0, 0, 0)
        if opcode == _READ:
            return self._read(path, *struct.unpack_from("<QI", data, 8))
        if opcode == _READDIR:
            return self._list(path, *struct.unpack_from("<QI", data, 8))
        if opcode == _STATFS:
            return bytes(80)
        if opcode in (_RELEASE, _RELEASEDIR, _FLUSH, _DESTROY):
            return b""
        raise OSError(errno.ENOSYS, "")

    def _node(self, path: Path) -> int:
        if path not in self._nodes:
            self._nodes[path] = len(self._paths)
            self._paths.append(path)
        return self._nodes[path]

    def _attributes(self, path: Path) -> bytes:
        found = path.stat()
        mode = found.st_mode & ~0o222
        times = [int(found.st_mtime)] * 3
        return _ATTR.pack(
            self._node(path), found.st_size, found.st_blocks, *times, 0, 0, 0,
            mode, 1, 0, 0, 0, 4096, 0,
        )  # fmt: skip

    def _read(self, path: Path, offset: int, size: int) -> bytes:
        total = path.stat().st_size
        if total > _LARGE and offset + size > self._part * total:
            raise OSError(errno.EIO, "")
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def _list(self, path: Path, offset: int, size: int) -> bytes:
        made = b""
        for i, found in enumerate(sorted(path.iterdir())[offset:], offset + 1):
            raw = os.fsencode(found.name)
            kind = stat.S_IFMT(found.stat().st_mode) >> 12
            entry = struct.pack("<QQII", self._node(found), i, len(raw), kind) + raw
            entry += bytes(-len(entry) % 8)
            if len(made) + len(entry) > size:
                break
            made += entry
        return made


def serve(folder: Path, mount: Path, part: float) -> None:
    """Mount, say so, and answer until it is unmounted."""
    handle = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={handle},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"failing", os.fsencode(mount), b"fuse.failing", _READ_ONLY, options):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    disk = Disk(folder.resolve(), part)
    sys.stdout.write("mounted\n")
    sys.stdout.flush()
    while True:
        try:
            request = os.read(handle, 1 << 18)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return
            raise
        _, opcode, unique, node, *_ = _IN.unpack_from(request)
        if opcode in (_FORGET, _BATCH_FORGET, _INTERRUPT):
            continue
        try:
            body, failed = disk.answer(opcode, node, request[_IN.size :]), 0
        except OSError as error:
            body, failed = b"", error.errno or errno.EIO
        os.write(handle, _OUT.pack(_OUT.size + len(body), -failed, unique) + body)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
