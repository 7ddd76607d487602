"""README.md, its translation and docs/: short, linked, and every command in them runs."""

from __future__ import annotations

import csv
import importlib.util
import os
import re
import runpy
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import config
import loss
import registries
import run_directory
import submit_ensemble
import submit_singular
import train
from tests.helpers import support
from tools import compare_runs, export_onnx, faceres, sample_data

ROOT = Path(__file__).resolve().parent.parent
ENGLISH, KOREAN = ROOT / "README.md", ROOT / "README.ko.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
LINKED = [ENGLISH, KOREAN, *DOCS, *ROOT.glob("*/README.md"), ROOT / "CONTRIBUTING.md"]
LINKED.append(ROOT / "SECURITY.md")
MAX_README_WORDS = 1200
MAX_DOCS_LINES = 150
MAX_PICTURE_PIXELS = 1600  # of height, where a page shows it
FIRST_SCREEN_LINES = 20
# every question of a user -> the page that answers it
QUESTIONS = {
    "own face boxes": "docs/data.md#your-own-face-boxes",
    "interval mean": "docs/scores.md#what-the-interval-means",
    "two F1 printed": "docs/scores.md#why-two-f1-are-printed",
    "run it on Slurm": "docs/machines.md#slurm",
    "add a loss": "docs/extending.md#a-loss",
    "a checkpoint hold": "docs/security.md#what-a-checkpoint-holds",
    "two runs vote": "docs/ensembles.md#vote-with-two-runs",
    "broken photograph": "docs/data.md#broken-photographs",
    "fast should it be": "docs/speed.md",
    "a stranger's model": "docs/security.md#is-it-safe-to-load-a-strangers-model",
}
COMMAND = re.compile(r"(?:\.venv/bin/|python3 |make |sbatch )")
MAINS: dict[str, Callable[[list[str]], int]] = {
    "train.py": train.main,
    "submit_singular.py": submit_singular.main,
    "submit_ensemble.py": submit_ensemble.main,
}
Settings = (
    type[config.TrainSettings] | type[config.SingularSettings] | type[config.EnsembleSettings]
)
SETTINGS: dict[str, Settings] = {
    "train.py": config.TrainSettings,
    "submit_singular.py": config.SingularSettings,
    "submit_ensemble.py": config.EnsembleSettings,
}


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def code_blocks(text: str) -> list[tuple[str, str]]:
    """(language, content) of each block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[str]:
    """The lines of a page's code blocks that are commands."""
    lines = [line for _, block in code_blocks(read(page)) for line in block.splitlines()]
    return [line for line in lines if COMMAND.match(line)]


def pictures(page: Path) -> list[str]:
    return re.findall(r"""(?:!\[[^]]*\]\(|<img src=")([^)"]+)[)"]""", read(page))


def links(text: str) -> list[str]:
    """The targets within the project."""
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", read(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# --- the pages


def test_the_readme_is_a_screen_and_a_half_and_shows_a_picture_first() -> None:
    assert len(read(ENGLISH).split()) <= MAX_README_WORDS
    assert "<img " in "".join(read(ENGLISH).splitlines()[:FIRST_SCREEN_LINES])


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_a_page_of_docs_is_short_and_linked_from_the_readme(page: Path) -> None:
    assert len(read(page).splitlines()) <= MAX_DOCS_LINES
    assert f"docs/{page.name}" in {link.partition("#")[0] for link in links(read(ENGLISH))}


@pytest.mark.parametrize("page", [ENGLISH, *DOCS], ids=lambda page: page.name)
def test_pictures_are_not_taller_than_a_screen_or_two(page: Path) -> None:
    for picture in pictures(page):
        with Image.open(page.parent / picture) as image:
            assert image.height < MAX_PICTURE_PIXELS, picture


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for link in [*links(read(page)), *pictures(page)]:
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize(("words", "target"), QUESTIONS.items())
def test_every_question_is_a_link_of_the_readme(words: str, target: str) -> None:
    questions = re.findall(r"\[([^]]+\?)\]\(([^)]+)\)", read(ENGLISH))
    assert [link for question, link in questions if words in question] == [target]


def test_the_page_of_options_is_the_parsers() -> None:
    written = runpy.run_path(str(ROOT / "docs" / "options.py"))["page"]()
    assert written == read(ROOT / "docs" / "options.md"), "run python docs/options.py"


# --- the translation


def test_both_pages_have_the_same_code_pictures_and_links() -> None:
    for part in (code_blocks, links):
        english, korean = part(read(ENGLISH)), part(read(KOREAN))
        assert english
        assert (
            english[part is links :] == korean[part is links :]
        )  # the first link is the other page
    assert pictures(ENGLISH) == pictures(KOREAN)


def test_both_pages_have_as_many_sections_and_rows() -> None:
    for pattern in (r"^#+ ", r"^\|", r"^(?:- |\d\. )"):
        counts = [len(re.findall(pattern, read(p), re.MULTILINE)) for p in (ENGLISH, KOREAN)]
        assert counts[0] == counts[1] > 0


def test_both_pages_name_the_same_things_in_their_prose() -> None:
    english, korean = (set(re.findall(r"`([^`\n]+)`", read(page))) for page in (ENGLISH, KOREAN))
    assert english == korean


# --- the commands


def shell_words(command: str) -> list[str]:
    """A command's words, its variables and substitutions filled in by the shell."""
    done = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {command}"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "SLURM_ARRAY_TASK_ID": "0"},
    )
    return done.stdout.split("\0")[:-1]


def small(words: list[str]) -> list[str]:
    """The words of a script with options that make it quick; those given last count."""
    script, options = words[0], words[1:]
    if script == "train.py":
        backbone = "tiny-resnet" if "VanillaResNet" in options else "tiny"
        if "faceres" in options:  # with its weights; an epoch is frozen
            weights = ["--backbone", "faceres", "--pretrained", "faceres.pth"]
            return [*options, *support.FAST, "--epochs", "2", "--cv", "2", *weights]
        return [*options, *support.FAST, "--epochs", "1", "--backbone", backbone]
    quick = [] if "--from-probs" in options else ["--workers", "0", "--threads", "1"]
    return [*options, *quick, "--device", "cpu"]


def run_script(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Run one of the three scripts; where it resumes, there is a run that lost its last fold. The
    last line of a prediction is the path of the file to upload.
    """
    main, options = MAINS[words[0]], small(words)
    if "--resume" in options:
        assert main([word for word in options if word != "--resume"]) == 0
        newest = max(Path("saved_models").iterdir(), key=lambda path: path.stat().st_mtime_ns)
        shutil.rmtree(max(newest.glob("fold*/")))
        content = run_directory.read_run_json(newest)
        del content["finished"]
        run_directory.write_json(newest / "run.json", content)
    assert main(options) == 0
    if words[0] != "train.py":
        last_line = capsys.readouterr().out.splitlines()[-1]
        assert Path(last_line).name == "submission.csv"
        assert Path(last_line).is_file()


def run_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Run a command of a page in the current folder, on a small scale; check those that install or
    need several processes or a GPU without running them.
    """
    program, *words = shell_words(command)
    if program == "make":
        assert re.search(rf"^{words[0]}:", read(ROOT / "Makefile"), re.MULTILINE)
    elif program == "sbatch":
        run_command(shlex.split(command)[-1], capsys)
    elif program.endswith("torchrun"):
        script = next(number for number, word in enumerate(words) if word in MAINS)
        SETTINGS[words[script]].parse(words[script + 1 :], words[script], "").completed()
    elif words[0] in MAINS:
        run_script(words, capsys)
    elif words[:2] == ["-m", "tools.sample_data"]:
        assert sample_data.main([*words[2:], "--people", "12", "--eval-people", "3"]) == 0
    elif words[:3] == ["-m", "pip", "install"]:
        if words[3] == "-r":
            assert (ROOT / words[4]).is_file()
        else:
            optional = words[3:] == list(export_onnx.PACKAGES)
            assert optional or words[3] in read(ROOT / "requirements-dev.txt").splitlines()
    elif words[:2] == ["-m", "tools.faceres"]:
        support.write_faceres(Path(words[2]))
        assert faceres.main(words[2:]) == 0
    elif words[:2] == ["-m", "tools.compare_runs"]:
        assert compare_runs.main(words[2:]) == 0
    else:
        assert words[0] == "-m"
        assert words[1] == "venv" or importlib.util.find_spec(words[1])


def write_tables(folder: Path) -> None:
    """boxes.csv and label-fixes.csv for the drawn people, with the columns that data.md shows."""
    data = folder / "input" / "data"
    photographs = sorted((data / "train").glob("images/*/*")) + sorted(data.glob("eval/images/*"))
    boxes = [[f"{p.parent.name}/{p.name}", 100, 120, 280, 330] for p in photographs]
    _, gender, _, _, person = support.read_rows(data / "train" / "train.csv")[1]
    fixes = [[person, "gender", {"male": "female", "female": "male"}[gender]]]
    shown = [block.splitlines()[0] for _, block in code_blocks(read(ROOT / "docs" / "data.md"))]
    for name, header, rows in (
        ("boxes.csv", "file,left,top,right,bottom", boxes),
        ("label-fixes.csv", "path,column,value", fixes),
    ):
        assert header in shown
        with open(folder / name, "w", newline="") as file:
            csv.writer(file).writerows([header.split(","), *rows])


def register_example(monkeypatch: pytest.MonkeyPatch) -> str:
    """Add the loss of extending.md as that page says; its name."""
    code, entry = (
        block for language, block in code_blocks(read(ROOT / "docs" / "extending.md")) if language
    )
    target, value = re.findall(r"loss:(\w+)", entry)[0], dict(vars(registries))
    monkeypatch.setattr(loss, target, None, raising=False)  # undone after the test
    exec(compile(code, "docs/extending.md", "exec"), vars(loss))
    ((name, registered),) = eval(f"{{{entry}}}", value).items()
    monkeypatch.setitem(registries.LOSSES, name, registered)
    return str(name)


def test_every_command_of_the_readme_and_of_docs_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert register_example(monkeypatch) == "hingeloss"
    run: list[str] = []
    for page in (ENGLISH, *DOCS):
        for command in commands(page):
            if command in run:
                continue
            print(f"{page.name}: {command}")  # pytest shows it beside a failure
            run_command(command, capsys)
            run.append(command)
        if page == ENGLISH:
            write_tables(tmp_path)
            check_landed(tmp_path)
    assert len(run) > 20
    for language, block in code_blocks(read(ROOT / "docs" / "python.md")):
        if language == "python":
            exec(compile(block, "docs/python.md", "exec"), {})


def check_landed(folder: Path) -> None:
    """All that the README lists is written."""
    block = next(block for _, block in code_blocks(read(ENGLISH)) if "submission.csv" in block)
    written = {path.name for path in folder.rglob("*")}
    listed = re.findall(r"^    ([\w.]+)", block, re.MULTILINE)
    assert len(listed) > 8
    assert written >= set(listed)
