#!/usr/bin/env python3
"""Write the tables of options, made from the parsers, into README.md between their markers."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import config  # noqa: E402

SCRIPTS = {
    "train.py": config.TrainSettings,
    "submit_singular.py": config.SingularSettings,
    "submit_ensemble.py": config.EnsembleSettings,
}


def filled(text: str) -> str:
    """The page with each `<!-- options: SCRIPT -->` ... `<!-- end -->` block made anew."""
    for script, settings in SCRIPTS.items():
        start = f"<!-- options: {script} -->\n"
        head, found, rest = text.partition(start)
        if not found:
            raise SystemExit(f"README.md has no marker {start.strip()}")
        _, end, tail = rest.partition("<!-- end -->")
        text = head + start + config.options_table(settings, script) + "\n" + end + tail
    return text


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text(encoding="utf-8")), encoding="utf-8")
