"""The English and the Korean page say the same commands and options."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.ko.md")}
ENGLISH, KOREAN = PAGES.values()


def test_both_pages_have_the_same_commands_sections_and_pictures() -> None:
    for pattern in (r"```.*?```", r"^#+ (?=.)|^### .*$", r"\]\((docs/[^)]+)\)"):
        both = [
            re.findall(pattern, page, re.DOTALL if "`" in pattern else re.MULTILINE)
            for page in (ENGLISH, KOREAN)
        ]
        assert both[0] == both[1]
        assert both[0]


def test_both_pages_have_the_same_options_values_and_defaults() -> None:
    tables = [
        "".join(re.findall(r"<!-- options: .*?<!-- end -->", page, re.DOTALL))
        for page in (ENGLISH, KOREAN)
    ]
    both = [
        [row.rpartition(" | ")[0] for row in table.splitlines() if row.startswith("| `--")]
        for table in tables
    ]
    assert len(both[0]) > 50
    assert both[0] == both[1], "run python docs/options.py"


def test_both_pages_name_the_same_things_in_their_prose() -> None:
    names = [
        set(re.findall(r"`(--[\w-]+|\w+\.(?:py|csv|json|npz|html))", page))
        for page in (ENGLISH, KOREAN)
    ]
    assert names[0] == names[1]


def test_a_translated_table_follows_the_parsers_and_keeps_its_words() -> None:
    script = runpy.run_path(str(ROOT / "docs" / "options.py"))
    assert script["filled"](KOREAN, translated=True) == KOREAN
    stale = re.sub(r"(\| `--epochs` \| N \|) 30", r"\1 31", KOREAN)
    assert stale != KOREAN
    assert script["filled"](stale, translated=True) == KOREAN
    unknown = re.sub(r"\| `--seed` .*\n", "", KOREAN)
    assert "| `--seed` | N | 42 | seed of every random draw" in script["filled"](
        unknown, translated=True
    )
