#!/usr/bin/env python3
"""Write the tables of options into README.md and README.ko.md, between their markers."""

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


def filled(text: str, translated: bool = False) -> str:
    """A page with each `<!-- options: SCRIPT -->` ... `<!-- end -->` block made anew."""
    for script, settings in SCRIPTS.items():
        start = f"<!-- options: {script} -->\n"
        head, found, rest = text.partition(start)
        if not found:
            raise SystemExit(f"a README has no marker {start.strip()}")
        before, end, tail = rest.partition("<!-- end -->")
        table = options_table(settings)
        text = (
            head + start + (in_words_of(table, before) if translated else table) + "\n" + end + tail
        )
    return text


def in_words_of(table: str, before: str) -> str:
    """The table with its header's and meanings' words from an earlier, translated one; new options
    stay in English.
    """
    old = before.splitlines()
    meanings = {row.split(" | ")[0]: row.rpartition(" | ")[2] for row in old}
    rows = [
        row.rpartition(" | ")[0]
        + " | "
        + meanings.get(row.split(" | ")[0], row.rpartition(" | ")[2])
        for row in table.splitlines()
    ]
    return "\n".join([*old[:2], *rows[2:]])


if __name__ == "__main__":
    for name, translated in (("README.md", False), ("README.ko.md", True)):
        page = ROOT / name
        page.write_text(filled(page.read_text(encoding="utf-8"), translated), encoding="utf-8")
