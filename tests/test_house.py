"""The house: which room imports which, how long a file may be, and that requirements agree."""

from __future__ import annotations

import ast
import functools
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())
FOLDERS = ("data", "training", "inference", "reporting", "runtime")
SCRIPTS = ("train", "submit_singular", "submit_ensemble")
MAX_LINES = 450  # of a product file
GROUND = {"labels", "runtime"}  # import nothing of ours
CORE = {*GROUND, "registries", "config", "data", "core"}
ALLOWED = {  # room: what it imports besides itself
    "labels": set(),
    "runtime": set(),
    "data": GROUND,
    "registries": GROUND,
    "config": {*GROUND, "registries"},
    "core": CORE,
    "engine": CORE,
    "reporting": CORE,  # but neither model nor engine
    "inference": {*CORE, "engine", "reporting"},
    "training": {*CORE, "engine", "reporting", "inference"},
    "script": {*CORE, "engine", "reporting", "inference", "training"},
    "tools": {*CORE, "engine", "reporting", "inference", "training"},
}


def product_files() -> list[Path]:
    """The scripts, the flat core, the folders and the tools."""
    inside = [path for name in (*FOLDERS, "tools") for path in (ROOT / name).rglob("*.py")]
    return sorted([*ROOT.glob("*.py"), *inside])


def module_name(path: Path) -> str:
    """data/tables.py -> data.tables; data/__init__.py -> data."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def modules() -> dict[str, Path]:
    return {module_name(path): path for path in product_files()}


@functools.cache
def imports_of(module: str) -> frozenset[str]:
    """The product's modules that one imports, at its top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(modules()[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            own = {f"{node.module}.{alias.name}" for alias in node.names} & set(modules())
            names |= own or {node.module}
    return frozenset(names & set(modules()))


def room_of(module: str) -> str:
    """The row of ALLOWED that holds for a module."""
    folder = module.partition(".")[0]
    if folder in SCRIPTS:
        return "script"
    return folder if folder in ALLOWED else "core"


@pytest.mark.parametrize("module", sorted(modules()))
def test_a_room_imports_only_what_stands_below_it(module: str) -> None:
    room = room_of(module)
    wrong = {
        other
        for other in imports_of(module)
        if room_of(other) not in {room, *ALLOWED[room]} or room_of(other) == "script"
    }
    if room == "reporting":
        wrong |= imports_of(module) & {"model"}
    assert not wrong, f"{module} ({room}) may not import {', '.join(sorted(wrong))}"


def test_no_import_leads_back_to_where_it_began() -> None:
    graph = {module: imports_of(module) - {module} for module in modules()}
    assert list(graphlib.TopologicalSorter(graph).static_order())  # CycleError names the circle


def test_no_file_is_longer_than_a_reader_can_hold() -> None:
    lines = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in product_files()
        if path.parts[-2] != "tools"
    }
    assert {file: count for file, count in lines.items() if count > MAX_LINES} == {}


def test_requirements_and_project_name_the_same_packages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert sorted(project["dependencies"]) == sorted(line for line in lines if line)


@pytest.mark.parametrize("path", sorted((ROOT / "tools").glob("[a-z]*.py")), ids=lambda p: p.name)
def test_a_tool_starts_as_a_file_too(path: Path) -> None:
    command = [sys.executable, str(path), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: " in done.stdout
