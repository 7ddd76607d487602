"""The choices in the report's page become a label-fixes.csv that --label-fixes takes (18.5)."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from data import label_fixes, tables
from reporting import html
from reporting.html import Picture
from reporting.summary import to_json

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="needs chromium")
CAPTURE = """<script>
URL.createObjectURL = (blob) => {
  blob.text().then((text) => { document.title = text; });
  return "#";
};
for (const box of document.querySelectorAll("input[type=checkbox]")) box.checked = true;
for (const field of document.querySelectorAll("input[type=number]")) field.value = 77;
document.getElementById("download-fixes").click();
</script>"""


@pytest.fixture
def page(tree: Path, train_root: Path) -> tuple[str, Any]:
    """The page of a run with a suspect of each kind, and the table that they are of."""
    table = tables.read_train(str(train_root))
    numbers = json.loads((tree / "report.json").read_text(encoding="utf-8"))
    photo = table.iloc[0]
    person, other = table["person"].unique()[:2]
    gender = ("female", "male")[int(table.loc[table["person"] == other, "gender"].iloc[0])]
    mask = "not_wear" if photo["mask"] != 2 else "wear"
    fixes = [(photo["file"], "mask", mask), (person, "age", ""), (other, "gender", gender)]
    rows = [{"name": f[0], "value": Picture("", "?", f)} for f in fixes]
    return html.render_page({**numbers, "extra": to_json({"Labels": rows})}, {}), table


def dump(path: Path, tmp_path: Path) -> str:
    """The page as headless Chromium has it after its scripts."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'c'}"]
    command = [CHROMIUM, *flags, "--virtual-time-budget=3000", "--dump-dom", path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout


@needs_chromium
def test_the_pages_policy_lets_its_one_script_run(page: tuple[str, Any], tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(page[0], encoding="utf-8")
    assert re.search(r'<button id="download-fixes"[^>]*disabled', page[0])
    shown = dump(tmp_path / "report.html", tmp_path)
    assert re.search(r'<button id="download-fixes"', shown)
    assert not re.search(r'<button id="download-fixes"[^>]*disabled', shown)


@needs_chromium
def test_the_downloaded_file_is_taken_as_label_fixes(page: tuple[str, Any], tmp_path: Path) -> None:
    text, table = page
    text = re.sub(r'<meta http-equiv="Content-Security-Policy".*?>', "", text, flags=re.DOTALL)
    text = text.replace("</body>", CAPTURE + "</body>")
    (tmp_path / "report.html").write_text(text, encoding="utf-8")
    title = re.search(r"<title>(.*?)</title>", dump(tmp_path / "report.html", tmp_path), re.DOTALL)
    assert title is not None
    (tmp_path / "label-fixes.csv").write_text(title[1], encoding="utf-8")
    fixed, counts = label_fixes.apply_fixes(table, tmp_path / "label-fixes.csv")
    assert counts == {"mask": 1, "age": 1, "gender": 1}
    assert (fixed["years"] == 77).sum() == 7


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
    assert f"submit_ensemble.py --root {tree}" in page
    assert "own best F1" in page
    assert page.count("data:image/jpeg;base64,") > 2 + 12  # mosaics, heat maps, people
    assert "Where the network looks" in page
