"""The house stays in order: imports go down only, and one name means one thing."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from support import PROJECT

PACKAGE = PROJECT / "valle_convert"

#: From the ground up; who stands on a shelf imports from the shelves below only.
#: docs/architecture.md says what each is for.
SHELVES = (
    ("closing", "errors", "metrics", "progress", "strict_json", "threads"),
    ("extras", "files"),
    ("npz_file",),
    ("checkpoint", "llama"),
    ("model", "tokenizer"),
    ("gguf_file", "text"),
    ("encodec",),
    ("audio", "network"),
    ("decode",),
    ("speech", "verify"),
    ("listening",),
    ("quantize",),
    ("doctor", "inspect"),
    ("api",),
    ("cli",),
    ("__main__",),
)
#: Names that every command or family has.
ROLES = {"register", "main", "describe"}


def modules() -> Iterator[tuple[str, Path, ast.Module]]:
    """The room of each module (a package, or a module of its own), its path, and what is in it."""
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room != "__init__":
            yield room, path, ast.parse(path.read_text(encoding="utf-8"))


def imported_rooms(tree: ast.Module) -> Iterator[str]:
    """Wherever in the module the import stands: a late import binds two rooms as well."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("valle_convert"):
            _, _, rest = (node.module or "").partition(".")
            names = [rest.split(".")[0]] if rest else [alias.name for alias in node.names]
            yield from (name for name in names if not name.startswith("__"))


def test_every_room_stands_on_a_shelf() -> None:
    on_shelves = [room for shelf in SHELVES for room in shelf]
    assert len(on_shelves) == len(set(on_shelves))
    assert {room for room, _, _ in modules()} == set(on_shelves)


def test_imports_go_down_only() -> None:
    height = {room: i for i, shelf in enumerate(SHELVES) for room in shelf}
    upward = [
        f"{path.relative_to(PROJECT)} imports {other}"
        for room, path, tree in modules()
        for other in imported_rooms(tree)
        if other != room and height[other] >= height[room]
    ]
    assert upward == []


def test_a_public_class_or_function_has_a_name_of_its_own() -> None:
    homes: dict[str, set[str]] = defaultdict(set)
    for room, path, tree in modules():
        if room == "cli":
            continue  # a command is called what the stage it calls is called
        for node in tree.body:
            is_definition = isinstance(node, ast.ClassDef | ast.FunctionDef)
            if is_definition and not node.name.startswith("_") and node.name not in ROLES:
                homes[node.name].add(str(path.relative_to(PROJECT)))
    # The facade offers some stages under their own names.
    shared = {
        name: places for name, places in homes.items() if len(places - {"valle_convert/api.py"}) > 1
    }
    assert shared == {}
