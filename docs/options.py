#!/usr/bin/env python3
"""Write docs/options.md: the options of the three scripts, from their settings."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import config  # noqa: E402
from runtime.options import Settings, argparse_arguments, flag  # noqa: E402

SCRIPTS = {
    "train.py": config.TrainSettings,
    "submit_singular.py": config.SingularSettings,
    "submit_ensemble.py": config.EnsembleSettings,
}
INTRODUCTION = """\
# Options

Written by `.venv/bin/python docs/options.py`. `--help` of each script shows the same.

Options are spelled with hyphens or underscores, and never shortened. Choices ignore case.
An unknown option is an error that names the nearest known one.
"""


def options_table(settings: type[Settings]) -> str:
    """The options as a Markdown table, in the order of --help."""
    rows = ["| option | values | default | meaning |", "|---|---|---|---|"]
    fields = dataclasses.fields(settings)
    for field in sorted(fields, key=lambda f: settings.groups.index(f.metadata["group"])):
        arguments = argparse_arguments(field)
        values = arguments.get("metavar", "").strip("{}").replace(",", ", ")
        values += " ..." if arguments.get("nargs") == "+" else ""
        meaning, default = field.metadata["help"], field.metadata["default"]
        rows.append(f"| `{flag(field.name)}` | {values} | {default} | {meaning} |")
    return "\n".join(rows)


def page() -> str:
    """The text of docs/options.md."""
    sections = (
        f"\n## {script}\n\n{options_table(settings)}\n" for script, settings in SCRIPTS.items()
    )
    return INTRODUCTION + "".join(sections)


if __name__ == "__main__":
    (ROOT / "docs" / "options.md").write_text(page(), encoding="utf-8")
