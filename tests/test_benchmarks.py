"""Every benchmark runs at its smallest size and prints its ratios. Times are never judged here."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import harness

# A side in another process does not know the tiny backbone.
LITE = ("--backbone", "efficientnet-lite0", "--image-size", "32")
SMALL = ("--rounds", "1", "--workers", "0", "--threads", "1")
ONE_BATCH = ("--rounds", "1", "--batches", "1", "--batch-size", "4", "--threads", "1")


def run(name: str, *words: str) -> int:
    code: int = importlib.import_module(f"benchmarks.{name}").main(list(words))
    return code


@pytest.mark.parametrize(
    ("name", "words", "output"),
    [
        (
            "training_speed",
            (*LITE, *ONE_BATCH, "--workers", "1"),
            r"real / limit [\d.]+ +real(.*\n)+.* ram gains",
        ),
        (
            "loading_speed",
            ("--image-size", "32", "--images", "2", "--rounds", "1"),
            r"tta [\d.]+(.*\n)+.*--cache ram.* tta",
        ),
        (
            "ensemble_speed",
            (*LITE, *SMALL, "--images", "2", "--members", "2", "--plain-passes", "1"),
            r"limit, in time [\d.]+",
        ),
        (
            "memory",
            ("--image-size", "32", "--members", "1", "--images", "14"),
            r"ensemble of +1 over +14 .*\n.*training on +14 ",
        ),
        (
            "growth",
            ("--backbone", "tiny", *SMALL, "--images", "2", "--rows", "42", "70"),
            r"leak .*of 1x\n(.*\n)+ +70 rows, l",
        ),
    ],
)
def test_a_benchmark_prints_its_machine_and_its_ratios(
    name: str,
    words: tuple[str, ...],
    output: str,
    train_root: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(name, str(train_root), *words) == 0
    printed = capsys.readouterr().out
    assert re.match(r"\d+ of \d+ processors .*, torch ", printed)
    assert re.search(output, printed)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("startup", ("--rounds", "1")),
        ("revote", ("--rounds", "1", "--members", "2", "--images", "5")),
    ],
)
def test_a_benchmark_compares_processes_with_python_alone(
    name: str, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(name, *words) == 0
    lines = re.findall(r"[\d.]+ s +[\d.]+ x python -c pass", capsys.readouterr().out)
    assert len(lines) >= 3


def test_the_first_step_of_a_first_and_a_second_start(
    train_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("startup", "--train-root", str(train_root), "--rounds", "1") == 0
    lines = re.findall(r"(\w+) +start, .* [\d.]+ s .* [\d]+ MiB", capsys.readouterr().out)
    assert lines == ["first", "second"]


def test_what_keeping_the_state_costs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("state_cost", "--backbone", "tiny", "--rounds", "1") == 0
    assert re.search(r"state of tiny: .* s a write .*% of 60 s", capsys.readouterr().out)


def test_sides_take_turns_and_medians_are_compared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    turns: list[str] = []
    clock = iter([0, 2, 2, 3, 3, 13, 13, 14, 14, 18, 18, 19])  # a: 2, 10, 4 seconds; b: 1 each
    monkeypatch.setattr(harness.time, "perf_counter", lambda: next(clock))

    def side(name: str, units: int) -> harness.Side:
        def turn() -> int:
            turns.append(name)
            return units

        return turn

    sides = {"a": side("a", 2), "b": side("b", 1)}
    seconds = harness.median_seconds(sides, 3)
    assert turns == ["a", "b"] * 3
    assert seconds == {"a": 2, "b": 1}
    harness.print_rates("title", seconds, "images", "b")
    assert "0.5 images/s    0.500 x b" in capsys.readouterr().out


def test_a_child_that_ends_is_reported_with_its_words() -> None:
    child = harness.ChildSide(["-c", "import sys; sys.exit(3)"])
    with pytest.raises(Exception, match="sys.exit.*: ended with 3"):
        child()
    with pytest.raises(Exception, match=r"train.py --epochs 0: ended with 2: .*--epochs"):
        harness.run_python(["train.py", "--epochs", "0"])


@pytest.mark.parametrize("words", [("-m", "benchmarks.startup"), ("benchmarks/startup.py",)])
def test_a_benchmark_starts_as_a_module_and_as_a_file(words: tuple[str, ...]) -> None:
    command = [sys.executable, *words, "--help"]
    done = subprocess.run(command, cwd=harness.PROJECT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--rounds" in done.stdout


@pytest.mark.parametrize("folder", ["benchmarks", "experiments"])
def test_each_page_of_results_names_its_modules(folder: str) -> None:
    page = (harness.PROJECT / folder / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(rf"python -m {folder}\.(\w+)", page))
    files = (harness.PROJECT / folder).glob("*.py")
    runnable = {path.stem for path in files if "__main__" in path.read_text(encoding="utf-8")}
    assert named - {"NAME"} == runnable
