"""CONTRIBUTING.md: its examples train as they stand, and the functions that it names exist."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path
from typing import Any

import pytest

import labels
import registries
import train
from tests.helpers import support

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
REGISTRIES: dict[str, dict[str, Any]] = {
    "MODELS": registries.MODELS,
    "BACKBONES": registries.BACKBONES,
    "LOSSES": registries.LOSSES,
    "OPTIMIZERS": registries.OPTIMIZERS,
    "TRANSFORMS": registries.TRANSFORMS,
    "TASKS": labels.TASKS,
}
OPTIONS = {
    "MODELS": ("--model-type",),
    "BACKBONES": ("--pretrained", "none", "--model-type", "THANet", "--backbone"),
    "LOSSES": ("--loss-type",),
    "OPTIMIZERS": ("--optim-type",),
    "TRANSFORMS": ("--transform-type",),
    "TASKS": ("--task",),
}


def example(registry: str) -> tuple[str, str, str]:
    """(the module's name, its code, the registry's entry) of the section on one registry."""
    section = next(part for part in PAGE.split("\n### ") if f", in {registry}\n" in part)
    blocks = re.findall(r"```python\n# (\w+)\.py(?:, in \w+)?\n(.*?)```", section, re.DOTALL)
    return *(blocks[0] if len(blocks) == 2 else ("", "")), blocks[-1][1]


@pytest.mark.parametrize("registry", REGISTRIES)
def test_an_example_trains_an_epoch_by_its_one_entry(
    registry: str, train_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, code, entry = example(registry)
    if code:
        target = importlib.import_module(module)
        names = {node.name for node in ast.parse(code).body if hasattr(node, "name")}
        for name in names:
            monkeypatch.setattr(target, name, None, raising=False)  # undone after the test
        exec(compile(code, f"CONTRIBUTING.md: {module}", "exec"), vars(target))
    names_of = vars(labels if registry == "TASKS" else registries)
    ((name, value),) = eval(f"{{{entry}}}", dict(names_of)).items()
    monkeypatch.setitem(REGISTRIES[registry], name, value)
    words = ["--train-root", str(train_root), "--save-path", str(tmp_path), "--epochs", "1"]
    assert train.main([*words, *support.FAST, *OPTIONS[registry], name]) == 0
    (written,) = tmp_path.glob("*/fold00/*.pth")
    assert name in written.name or registry == "BACKBONES"


def test_the_functions_and_files_that_it_names_exist() -> None:
    named = re.findall(r"`([\w/]+(?:\.py|\.html\.j2))(?:: ([\w, ]+))?`", PAGE)
    assert len(named) > 30
    for file, names in named:
        path = ROOT / file
        assert path.is_file(), file
        if names:
            body = ast.parse(path.read_text(encoding="utf-8")).body
            targets = [node.targets[0] for node in body if isinstance(node, ast.Assign)]
            targets += [node.target for node in body if isinstance(node, ast.AnnAssign)]
            known = {target.id for target in targets if isinstance(target, ast.Name)}
            known |= {
                node.name for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))
            }
            missing = set(names.split(", ")) - known
            assert not missing, f"{file} has no {', '.join(missing)}"


def test_its_drawing_shows_every_file_of_the_house() -> None:
    drawing = PAGE.partition("## The house")[2].partition("The way of the data")[0]
    shown = set(re.findall(r"[\w*]+\.(?:py|j2)", drawing))
    rooms = [
        ROOT,
        *(ROOT / name for name in ("data", "training", "inference", "reporting", "runtime")),
    ]
    files = {path.name for room in rooms for path in room.glob("*.py")} - {"__init__.py"}
    assert files == shown - {"*.j2"}
