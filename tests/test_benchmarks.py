"""Every benchmark runs at its smallest size and prints its ratios. Times are never judged here."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu, gpu_parts, harness

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
            "folds_speed",
            (*LITE, "--rounds", "1", "--people", "6", "--folds", "2"),
            r"1 jobs [^\n]*1.000 x 1 jobs",
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


def test_the_gpu_command_measures_and_compares_on_a_processor_too(
    train_root: Path, tmp_path: Path
) -> None:
    json_path = tmp_path / "gpu.json"
    options = {
        "device": "cpu",
        "parts": "large,small,recipe,loading,resume,ddp,tests",
        "train-root": train_root,
        "json": json_path,
        "batch-size": 8,
        "small-batch-size": 8,
        "images": 16,
        "threads": 1,
        "workers": 1,
        "rounds": 1,
    }
    words = ["-m", "benchmarks.gpu", *LITE, *harness.as_options(options)]
    lines = iter(harness.run_python(words).splitlines())
    for pattern in (  # in this order
        r" +\d+ of \d+ processors .*, torch ",
        r"== large",
        r" +bare step, eager +[\d.]+ images/s .* GiB",
        r" +real loop, eager +[\d.]+ images/s",
        r" +waiting, eager: -?[\d.]+ % \(aim",
        r" +18,900 photographs x 30 epochs x 5 folds: [\d.]+ minutes \(aim",
        r"== small",
        r" +batch 8 / batch 8: [\d.]+ \(aim",
        r"== recipe",
        r" +18,900 photographs",
        r"== loading",
        r" +waiting, cache ram",
        r"== resume",
        r" +second, weights: equal bits",
        r" +resumed, weights: equal bits",
        r"== ddp",
        r" +two against one: losses [\d. ]+ and [\d. ]+",
        r"== tests",
        r" +.*\d+ (passed|skipped)",
    ):
        assert any(re.match(pattern, line) for line in lines), pattern
    results = json.loads(json_path.read_text(encoding="utf-8"))
    assert results["settings"]["image_size"] == "32"
    assert results["large"]["real loop, eager"] > 0
    assert results["resume"]["unequal tensors, resumed"] == 0
    assert results["ddp"]["two against one"] > 0, "two processes must not be one"


def test_the_gpu_command_without_a_gpu_ends_with_a_line() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu"]
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, cwd=harness.PROJECT, env=hidden, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"gpu\.py: error: --device cuda: [^\n]+\n", done.stderr)


def test_a_part_that_fails_or_is_killed_leaves_the_others_and_what_it_had_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def failing(context: gpu_parts.PartContext) -> None:
        context.add("before", 1)
        raise ValueError("no such kernel")

    def killed(context: gpu_parts.PartContext) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def good(context: gpu_parts.PartContext) -> None:
        context.add("rate", context.results["failing"]["before"] + 1, "a line")

    parts = {"failing": failing, "killed": killed, "good": good}
    monkeypatch.setattr(gpu, "PARTS", parts)
    args = argparse.Namespace(parts=list(parts), minutes=9, json=tmp_path / "gpu.json")
    results: dict[str, dict[str, object]] = {}
    assert not gpu.run_parts(args, results)
    printed = capfd.readouterr().out
    assert "failing failed: ValueError: no such kernel\n" in printed
    assert "killed failed: its process ended with -9\n" in printed
    assert "  a line\n" in printed
    assert results["good"]["rate"] == 2
    assert json.loads(args.json.read_text(encoding="utf-8")) == results


def test_a_part_that_would_start_late_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    args = argparse.Namespace(parts=["large"], minutes=-1)
    assert gpu.run_parts(args, {})
    assert capsys.readouterr().out == "== large: left out, -1 minutes are over\n"


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
