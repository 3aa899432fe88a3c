"""The house: where modules stand, who may import whom, how long what is read first may be."""

from __future__ import annotations

import ast
import graphlib
import importlib
import re
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

PRODUCT = ("vimaedit", "pipelines", "jobs")
MOST_MODULES = 15  # in a folder
MODULES_WITHOUT_README = 4
README_LINES = {"README.md": 120}
OTHER_README_LINES = 100
ENTRY_LINES = 80
FUNCTION_LINES = 65
DECLARATIONS = 1.3  # of an option, over all settings
# Rooms of `pipelines` and modules at its root, from the ground up: a floor may use those below it, never one above or another
# room of its own floor.
FLOORS = (
    ("exits", "options"),
    ("store",),
    ("tables",),
    ("cluster",),
    ("records",),
    ("output",),
    ("score",),
    ("edit",),
    ("ingest", "publish"),
    ("evaluate", "synthesis"),
)
PRIVATE_RAY = re.compile(r"\bray\._(?!_)\w+|\bray(\.\w+)+\._(?!_)\w+")


@pytest.fixture(scope="module")
def modules(repository: Path) -> dict[str, Path]:
    """All modules of the product that git knows or would add, by their dotted names."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *(f"{top}/*.py" for top in PRODUCT)]
    listed = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True).stdout.split()
    paths = [repository / name for name in listed if (repository / name).is_file()]
    assert len(paths) > 200
    return {dotted(path.relative_to(repository)): path for path in paths}


@pytest.fixture(scope="module")
def imports(modules: Mapping[str, Path]) -> dict[str, set[str]]:
    """What every module imports of the product, inside functions too."""
    return {name: set(imported(name, path, modules)) for name, path in modules.items()}


def dotted(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(name: str, path: Path, modules: Mapping[str, Path]) -> Iterable[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: a relative import"
            named = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for each in named:
            target = each if each in modules else each.rpartition(".")[0]
            if target in modules and target != name:
                yield target


def room(module: str, modules: Mapping[str, Path]) -> str:
    """Return the folder of a module, dotted: `pipelines.store`."""
    return module if modules[module].name == "__init__.py" else module.rpartition(".")[0]


def circle(graph: Mapping[str, Iterable[str]]) -> list[str]:
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_no_folder_holds_more_than_fifteen_modules(modules: Mapping[str, Path]) -> None:
    count = Counter(room(name, modules) for name, path in modules.items() if path.name != "__init__.py")
    assert {name: number for name, number in count.items() if number > MOST_MODULES} == {}


def test_no_module_imports_itself_by_a_detour(imports: Mapping[str, set[str]]) -> None:
    assert circle(imports) == []


@pytest.mark.parametrize("package", ["vimaedit", "jobs"])
def test_no_folder_imports_itself_by_a_detour(
    package: str, imports: Mapping[str, set[str]], modules: Mapping[str, Path]
) -> None:
    # Modules at the root (types, errors, settings below; the front door above) are no folder.
    graph: dict[str, set[str]] = defaultdict(set)
    for name, targets in imports.items():
        for target in targets:
            here, there = (room(each, modules) for each in (name, target))
            if here != there and here.startswith(f"{package}.") and there.startswith(f"{package}."):
                graph[here].add(there)
    assert circle(graph) == []


def test_no_floor_of_the_pipelines_uses_one_above_it(imports: Mapping[str, set[str]], modules: Mapping[str, Path]) -> None:
    level = {name: height for height, names in enumerate(FLOORS) for name in names}
    rooms = {name: name.split(".")[1] for name in modules if name.startswith("pipelines.")}
    assert set(rooms.values()) == set(level)
    wrong = [
        f"{name} -> {target}"
        for name, here in rooms.items()
        for target in imports[name] & rooms.keys()
        if rooms[target] != here and level[rooms[target]] >= level[here]
    ]
    assert wrong == []


def test_folders_say_what_belongs_there(repository: Path, modules: Mapping[str, Path]) -> None:
    count = Counter(room(name, modules) for name, path in modules.items() if path.name != "__init__.py")
    folders = [name.replace(".", "/") for name, number in count.items() if number > MODULES_WITHOUT_README]
    assert [name for name in [*folders, ".", "infra", "tests"] if not (repository / name / "README.md").is_file()] == []


def test_what_is_read_first_is_short(repository: Path) -> None:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "README.md", "*/README.md"]
    names = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True).stdout.split()
    assert len(names) > 10
    lines = {name: len((repository / name).read_text().splitlines()) for name in names}
    assert {name: n for name, n in lines.items() if n > README_LINES.get(name, OTHER_README_LINES)} == {}


def test_links_of_readmes_lead_somewhere(repository: Path) -> None:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    names = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True).stdout.split()
    dead = []
    for name in names:
        page = repository / name
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in link and not (page.parent / link).exists():
                dead.append(f"{name}: {link}")
    assert dead == []


def test_the_product_does_not_know_its_tests(modules: Mapping[str, Path]) -> None:
    naming = re.compile(r"\btests[./]\w|[\"']tests[\"']|\bimport tests\b")
    assert [name for name, path in modules.items() if naming.search(path.read_text())] == []


def test_what_is_private_of_ray_stands_in_one_file(modules: Mapping[str, Path]) -> None:
    assert len([name for name, path in modules.items() if PRIVATE_RAY.search(path.read_text())]) == 1


def test_entries_are_short(modules: Mapping[str, Path]) -> None:
    entries = {name: len(path.read_text().splitlines()) for name, path in modules.items() if re.fullmatch(r"jobs\.\w+", name)}
    assert len(entries) >= 11
    assert {name: lines for name, lines in entries.items() if lines > ENTRY_LINES} == {}


def test_functions_are_short(modules: Mapping[str, Path]) -> None:
    functions = {
        f"{name}:{node.name}": node.end_lineno - node.lineno + 1
        for name, path in modules.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.end_lineno is not None
    }
    assert len(functions) > 1500
    assert {name: lines for name, lines in functions.items() if lines > FUNCTION_LINES} == {}


def test_an_option_is_declared_in_one_place(modules: Mapping[str, Path]) -> None:
    declared: dict[type[Any], set[str]] = {}
    for name, path in modules.items():
        for found in re.findall(r"^class (\w+Config)\b", path.read_text(), re.MULTILINE):
            for each in getattr(importlib.import_module(name), found).__mro__:
                declared[each] = set(vars(each).get("__annotations__", ()))
    names = Counter(option for options in declared.values() for option in options)
    assert len(names) > 80
    assert names.total() / len(names) <= DECLARATIONS, [name for name, times in names.most_common() if times > 1]
