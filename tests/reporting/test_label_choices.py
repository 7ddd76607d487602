"""The choices in the report's page become a label-fixes.csv that --label-fixes takes (18.5)."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from data import label_fixes, tables
from reporting import html, label_issues
from reporting.summary import to_json
from tests.helpers import support
from training import cross_validation

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="needs chromium")
CHOOSE = """
for (const box of document.querySelectorAll("input[type=checkbox]")) box.checked = true;
for (const field of document.querySelectorAll("input[type=number]")) field.value = YEARS;
document.dispatchEvent(new Event("input"));
document.getElementById("download-fixes").click();
"""
MEASURE = """
document.documentElement.style.width = "390px";
const scrolls = (element) =>
  element && (getComputedStyle(element).overflowX === "auto" || scrolls(element.parentElement));
const wide = [...document.querySelectorAll("main *")].filter((element) =>
  element.getBoundingClientRect().right > 390 && !scrolls(element.parentElement));
document.title = "wider: " + wide.map((element) => element.outerHTML.slice(0, 80));
"""


@pytest.fixture
def page(tree: Path, train_root: Path) -> tuple[str, Any]:
    """The page of a run with a suspect of each kind, and the table that they are of."""
    table = tables.read_train(str(train_root))
    numbers = json.loads((tree / "report.json").read_text(encoding="utf-8"))
    photos = table.drop_duplicates("person")
    files, people = photos["file"].tolist(), photos["person"].tolist()
    gender = ("female", "male")[int(photos["gender"].iloc[1])]
    mask = "not_wear" if photos["mask"].iloc[0] != 2 else "wear"
    suspects = [
        ("mask", people[0], files[0], "?", mask, 9.0),
        ("age", people[0], files[0], "under 30", "60 and over", 8.0),
        ("gender", people[1], files[1], "?", gender, 7.0),
    ]
    shown = cross_validation.show_suspects(pd.DataFrame(suspects, columns=label_issues.COLUMNS))
    rows = [{"name": name, "value": value} for name, value in shown]
    paths = dict(zip(table["file"], table["path"], strict=True))
    extra = {"Labels to look at": to_json(rows)}
    page = html.render_page({**numbers, "extra": extra, "most_wrong": [], "samples": []}, paths)
    assert page.count("data:image/jpeg;base64,") == 3
    return page, table


def open_page(text: str, tmp_path: Path) -> tuple[str, Path]:
    """(the page as headless Chromium has it after its scripts, the folder of its downloads)."""
    path, profile, downloads = (tmp_path / name for name in ("a.html", "profile", "downloads"))
    path.write_text(text, encoding="utf-8")
    (profile / "Default").mkdir(parents=True)
    preferences = {"download": {"default_directory": str(downloads)}}
    (profile / "Default" / "Preferences").write_text(json.dumps(preferences))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=500,844"]
    flags += [f"--user-data-dir={profile}", "--virtual-time-budget=3000"]
    command = [CHROMIUM, *flags, "--dump-dom", path.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=support.LIMIT).stdout
    return shown, downloads


def with_script(text: str, script: str) -> str:
    """The page with a second script, allowed by its hash too."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = text.replace("script-src ", f"script-src 'sha256-{digest}' ")
    return text.replace("</body>", f"<script>{script}</script></body>")


@needs_chromium
def test_the_downloaded_file_is_taken_as_label_fixes(page: tuple[str, Any], tmp_path: Path) -> None:
    """Under the page's own policy, from a file:// page."""
    text, table = page
    _, downloads = open_page(with_script(text, CHOOSE.replace("YEARS", "77")), tmp_path)
    (downloaded,) = downloads.iterdir()
    assert downloaded.name == "label-fixes.csv"
    fixed, counts = label_fixes.apply_fixes(table, downloaded)
    assert counts == {"mask": 1, "age": 1, "gender": 1}
    assert (fixed["years"] == 77).sum() == 7


@needs_chromium
def test_an_impossible_age_is_marked_and_not_written(page: tuple[str, Any], tmp_path: Path) -> None:
    _, downloads = open_page(with_script(page[0], CHOOSE.replace("YEARS", "770")), tmp_path)
    (downloaded,) = downloads.iterdir()
    assert "770" not in downloaded.read_text(encoding="utf-8")
    assert label_fixes.apply_fixes(page[1], downloaded)[1] == {"mask": 1, "gender": 1}


@needs_chromium
def test_nothing_can_be_downloaded_before_something_is_chosen(
    page: tuple[str, Any], tmp_path: Path
) -> None:
    """Nor does a script run that the page does not bring."""
    foreign = page[0].replace("</body>", f"<script>{CHOOSE.replace('YEARS', '77')}</script></body>")
    shown, downloads = open_page(foreign, tmp_path)
    assert re.search(r'<button id="download-fixes"[^>]*disabled', shown)
    assert not downloads.exists()


@needs_chromium
def test_a_phone_scrolls_wide_tables_and_not_the_page(
    page: tuple[str, Any], tmp_path: Path
) -> None:
    """(18.4) At 390 pixels, to which the page is brought: headless windows are 500 or wider."""
    shown, _ = open_page(with_script(page[0], MEASURE), tmp_path)
    assert "<title>wider: </title>" in shown


def test_a_page_without_choices_has_no_script(tree: Path) -> None:
    numbers = json.loads((tree / "report.json").read_text(encoding="utf-8"))
    shown = html.render_page({**numbers, "extra": {}}, {})
    assert "<script" not in shown
    assert "script-src" not in shown


def test_a_model_that_guesses_shows_no_suspects(tree: Path) -> None:
    """(18.4) Its run's page says why."""
    numbers = json.loads((tree / "report.json").read_text(encoding="utf-8"))
    assert numbers["headline"]["macro_f1"]["value"] < 0.1
    (row,) = numbers["extra"]["Labels to look at"]
    assert "hardly beats guessing" in row["value"]
    page = (tree / "report.html").read_text(encoding="utf-8")
    assert "<b>This model hardly beats guessing:</b>" in page
    assert f"submit_ensemble.py --root {tree}" in page
    assert "own best F1" in page
    assert page.count("data:image/jpeg;base64,") > 2 + 12  # mosaics, heat maps, people
    assert "Where the network looks" in page
