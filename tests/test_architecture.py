"""The house stays in order: imports go down only, one name means one thing, and a family is asked
only by its interface."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

from support import PROJECT

from valle_convert.families import FOLDERS, families

PACKAGE = PROJECT / "valle_convert"

#: From the ground up; who stands on a shelf imports from the shelves below only.
#: docs/architecture.md says what each is for.
SHELVES = (
    ("closing", "errors", "metrics", "progress", "strict_json", "threads", "wording"),
    ("extras", "files"),
    ("npz_file",),
    ("checkpoint", "llama"),
    ("model", "tokenizer"),
    ("gguf_file", "text"),
    ("encodec",),
    ("audio", "network"),
    ("decode",),
    ("listening", "speech"),
    ("families",),
    ("serve", "verify"),
    ("quantize",),
    ("doctor", "inspect"),
    ("api",),
    ("cli",),
    ("__main__",),
)
#: Names that every command has.
ROLES = {"register", "main"}
TITLES = {family.title for family in families()} - {"VALL-E"}
FAMILY_WORD = re.compile("|".join([*FOLDERS, *TITLES]), re.IGNORECASE)
#: In the name of a file: `-v5.0-`.
VERSION = re.compile(r"v\d+\.\d")


def modules() -> Iterator[tuple[str, Path, ast.Module]]:
    """The room of each module (a package, or a module of its own), its path, and what is in it."""
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room != "__init__":
            yield room, path, ast.parse(path.read_text(encoding="utf-8"))


def imported_rooms(tree: ast.Module) -> Iterator[str]:
    """Wherever in the module the import stands: a late import binds two rooms as well."""
    for module in imported_modules(ast.walk(tree)):
        room = module.partition("/")[0]
        if not room.startswith("__"):
            yield room.removesuffix(".py")


def imported_modules(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """The files of the package that are imported by name, such as `families/bundle.py`."""
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("valle_convert"):
            place = "/".join((node.module or "").split(".")[1:])
            inside = [f"{place}/{alias.name}".removeprefix("/") for alias in node.names]
            for one in inside:
                yield file_of(one) or file_of(place) or f"{place}/__init__.py".removeprefix("/")


def file_of(place: str) -> str | None:
    """A module, or a package by its `__init__.py`."""
    found = [f"{place}.py", f"{place}/__init__.py"]
    return next((one for one in found if (PACKAGE / one).is_file()), None)


def run_at_import(nodes: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that an import of the module runs."""
    for node in nodes:
        is_for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if not is_for_types and not isinstance(node, ast.FunctionDef):
            yield node
            yield from run_at_import(
                one for one in ast.iter_child_nodes(node) if isinstance(one, ast.stmt)
            )


def words_of(tree: ast.Module) -> Iterator[str]:
    """Identifiers and strings."""
    for node in ast.walk(tree):
        for _, value in ast.iter_fields(node):
            values = value if isinstance(value, list) else [value]
            yield from (VERSION.sub("", one) for one in values if isinstance(one, str))


def knows_a_family(tree: ast.Module) -> bool:
    return any(FAMILY_WORD.search(word) for word in words_of(tree))


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


def test_no_module_is_imported_by_what_it_imports() -> None:
    graph = {
        str(path.relative_to(PACKAGE)): set(imported_modules(run_at_import(tree.body)))
        for _, path, tree in modules()
    }
    TopologicalSorter(graph).prepare()  # raises where there is a circle


def test_nothing_outside_imports_a_family_and_no_family_another() -> None:
    homes = {folder: f"families/{folder}/" for folder in FOLDERS}
    wrong = [
        f"{path.relative_to(PROJECT)} imports {other}"
        for _, path, tree in modules()
        for other in imported_modules(ast.walk(tree))
        for home in homes.values()
        if other.startswith(home) and not f"{path.relative_to(PACKAGE)}".startswith(home)
    ]
    assert wrong == []


def test_no_word_outside_is_the_name_of_a_family() -> None:
    known = {
        str(path.relative_to(PACKAGE))
        for room, path, tree in modules()
        if room != "families" and knows_a_family(tree)
    }
    assert known == set()


def role_of(path: Path) -> str:
    """The same for files that each family has."""
    place = str(path.relative_to(PROJECT))
    return re.sub(rf"/families/({'|'.join(FOLDERS)})/", "/families/*/", place)


def test_a_public_class_or_function_has_a_name_of_its_own() -> None:
    homes: dict[str, set[str]] = defaultdict(set)
    for room, path, tree in modules():
        if room == "cli":
            continue  # a command is called what the stage it calls is called
        for node in tree.body:
            is_definition = isinstance(node, ast.ClassDef | ast.FunctionDef)
            if is_definition and not node.name.startswith("_") and node.name not in ROLES:
                homes[node.name].add(role_of(path))
    # The facade offers some stages under their own names.
    shared = {
        name: places for name, places in homes.items() if len(places - {"valle_convert/api.py"}) > 1
    }
    assert shared == {}
