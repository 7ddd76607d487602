"""Submissions: stored probabilities, the run and the views that are taken, run.json, tasks that
users register.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import augmentation
import checkpoint
import config
import ensemble
import out_of_fold
import registries
import submit_ensemble
import submit_singular
import train
from data import images, tables
from inference import predictor, submission
from labels import PARTS, TASKS, Task
from runtime.cli import run_script
from runtime.errors import RunError, UserError, path_error, plural
from runtime.files import atomic_write, create_new_folder
from tests.helpers import support

MACHINE = ("--device", "cpu", "--threads", "1", "--workers", "0")
SAVED = "saved_models"


ABLE_OF_AGE = "VanillaEfficientNet or VanillaResNet or Factorised"


def predict(script: Any, eval_root: Path, out: Path, *words: str) -> Path:
    """The new folder of a prediction."""
    before = set(out.iterdir()) if out.is_dir() else set()
    assert (
        script.main(["--data-root", str(eval_root), "--save-path", str(out), *MACHINE, *words]) == 0
    )
    (made,) = set(out.iterdir()) - before
    return made


@pytest.fixture(scope="module")
def small_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return support.make_train(
        tmp_path_factory.mktemp("small") / "train", support.PEOPLE[:6], junk=False
    )


@pytest.fixture(scope="module")
def runs(small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose saved_models holds runs of one fold and one epoch: `random`, `facecrop`, a
    Factorised, a mask model; each newer than those before it.
    """
    home = tmp_path_factory.mktemp("runs")
    kinds = {
        "random": [],
        "facecrop": ["--transform-type", "facecrop"],
        "strong": ["--recipe", "strong", "--cv", "1"],
        "mask": ["--task", "mask"],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registries.BACKBONES, "tiny", support.TINY)
        for day, (name, words) in enumerate(kinds.items(), start=1):
            assert (
                train.main(
                    [
                        "--train-root",
                        str(small_root),
                        "--save-path",
                        str(home / SAVED),
                        "--epochs",
                        "1",
                        "--quiet",
                        "--run-name",
                        name,
                        *support.FAST,
                        *words,
                    ]
                )
                == 0
            )
            path = run_of(home, name) / "run.json"
            path.write_text(
                json.dumps({**json.loads(path.read_text()), "started": f"2026-01-0{day}T00:00:00"})
            )
    return home


def run_of(home: Path, name: str) -> Path:
    return next((home / SAVED).glob(f"kfold-ensemble-*_{name}"))


def run_without(home: Path, tmp_path: Path, *names: str) -> Path:
    """A copy of the runs without some."""
    copy = shutil.copytree(home, tmp_path / "home")
    for name in names:
        shutil.rmtree(run_of(copy, name))
    return copy


# --- stored probabilities (16.7)


def stored(folder: Path, task: str = "mask", **other: Any) -> Path:
    """A folder with a probs.npz of two members, one view and three photographs; `other` arrays take
    the place of its own.
    """
    width = TASKS[task].outputs
    array = np.full((2, 1, 3, width), 30.0 if TASKS[task].regression else 1 / width, np.float32)
    arrays = {
        "task": np.array(task),
        "probabilities": array,
        "members": np.array(["fold00/a.pth", "fold01/b.pth"]),
        "folds": np.array([0, 1]),
        "weights": np.array([0.5, 0.6]),
        "images": np.array(["x", "y", "z"]),
        "f1": np.empty(0),
    }
    folder.mkdir()
    np.savez(folder / submission.PROBS, **{**arrays, **other})
    return folder


EVEN = np.full((2, 1, 3, 3), 1 / 3)


@pytest.mark.parametrize(
    ("task", "other"),
    [
        ("mask", {"probabilities": np.full((2, 1, 3, 3), 1e300)}),
        ("age", {"probabilities": np.full((2, 1, 3, 1), 1e300)}),
        ("age", {"probabilities": np.full((2, 1, 3, 1), np.nan)}),
        ("mask", {"probabilities": EVEN.astype(np.complex128)}),
        ("mask", {"probabilities": EVEN > 0}),
        ("mask", {"probabilities": EVEN * 2}),
        ("mask", {"probabilities": EVEN - 1 / 3}),
        ("mask", {"probabilities": EVEN + np.array([-1.0, 1.0, 0.0])}),
        ("mask", {"folds": np.array([np.nan, 1.0])}),
        ("mask", {"folds": np.array([-1, 1])}),
        ("mask", {"folds": np.array([[0], [1]])}),
        ("mask", {"weights": np.array([0.5 + 1j, 0.6])}),
        ("mask", {"weights": np.array([1e308, 1e308])}),
        ("mask", {"weights": np.array([np.inf, 0.6])}),
        ("mask", {"f1": np.array([np.nan, 0.6])}),
        ("mask", {"members": np.array(["fold00/" + "a" * 300 + ".pth", "fold01/b.pth"])}),
        (
            "mask",
            {"members": np.array(["fold00/" + "\uac00" * 100 + ".pth", "fold01/b.pth"])},
        ),  # 300 bytes
        (
            "mask",
            {"members": np.array(["t.csv/fold00/a.pth", "fold00/t.pth"])},
        ),  # a folder and a file of one name
        ("mask", {"members": np.array([1, 2])}),
    ],
)
def test_stored_probabilities_are_checked_as_they_are_used(
    tmp_path: Path, task: str, other: dict[str, np.ndarray]
) -> None:
    """(16.7)"""
    folder = stored(tmp_path / "stored", task, **other)
    with pytest.raises(UserError, match=r"probs\.npz: damaged .*; predict again"):
        submit_ensemble.main(
            ["--from-probs", str(folder), "--task", task, "--save-path", str(tmp_path / "out")]
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_probabilities_that_sum_to_1_within_rounding_are_taken(tmp_path: Path, kind: type) -> None:
    """(16.7) Products of mask, gender and age group, and their sums, are off by some units of the
    last place.
    """
    draw = np.random.default_rng(0)
    parts: dict[str, np.ndarray] = {
        part: draw.dirichlet(np.ones(TASKS[part].outputs), (2, 1, 3)).astype(kind) for part in PARTS
    }
    product = ensemble.multiply_parts(parts)
    folder = stored(tmp_path / "stored", "main", probabilities=product)
    assert submission.load_probabilities(folder).array == pytest.approx(product.astype(np.float32))
    words = ["--from-probs", str(folder), "--save-path", str(tmp_path / "out"), "--task"]
    for task in ("main", "gender"):
        assert submit_ensemble.main([*words, task]) == 0


def test_a_long_name_of_a_tree_is_cut_for_the_folder_of_a_prediction(tmp_path: Path) -> None:
    """(16.7) Its own prediction could not be kept, after all the work."""
    made = [submission.create_output_folder(str(tmp_path), "\uac00" * 83, "main") for _ in range(2)]
    assert len({path.name for path in made}) == 2
    assert all(re.fullmatch("\uac00+_main_.*", path.name) for path in made)


# --- which run is taken (16.24)


def test_after_a_run_of_another_model_the_submit_scripts_take_it(
    runs: Path,
    eval_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """(16.24) The newest run is a mask model's, the newest that answers main a Factorised's."""
    monkeypatch.chdir(runs)
    strong, mask = run_of(runs, "strong"), run_of(runs, "mask")

    def taken(script: Any, *words: str) -> str:
        capsys.readouterr()
        predict(script, eval_root, tmp_path / "p", *words)
        return capsys.readouterr().out.splitlines()[0]

    (best,) = strong.glob("fold00/*.pth")
    assert taken(submit_singular) == f"checkpoint: {best.relative_to(runs)}"
    assert taken(submit_ensemble).startswith(
        f"run: {strong.relative_to(runs)}: 1 member x 1 view (base) of 9 photographs"
    )
    assert str(mask.relative_to(runs)) in taken(submit_singular, "--task", "mask")
    assert str(mask.relative_to(runs)) in taken(submit_ensemble, "--task", "mask")
    narrowed = taken(submit_singular, "--model-type", "vanillaefficientnet", "--task", "gender")
    assert narrowed.startswith(f"checkpoint: {run_of(runs, 'facecrop').relative_to(runs)}/fold00/")


def test_where_no_run_answers_the_task_the_option_is_named(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(16.24)"""
    monkeypatch.chdir(run_without(runs, tmp_path, "strong"))
    with pytest.raises(
        UserError,
        match=(
            "^--task age: no checkpoint under saved_models answers age; train .* --load-state-dict"
        ),
    ):
        submit_singular.main(["--task", "age"])
    with pytest.raises(
        UserError,
        match=("^--task main: no checkpoint of THANet_MK1 under saved_models answers main"),
    ):
        submit_singular.main(["--model-type", "THANet"])
    with pytest.raises(
        UserError,
        match=(
            "^--task age: no checkpoint under saved_models answers age; train one, .* with --root"
        ),
    ):
        submit_ensemble.main(["--task", "age"])


# --- several views (16.25)


@pytest.mark.parametrize(
    ("name", "transform"), [("random", "tta"), ("facecrop", "facerandom"), ("strong", "facerandom")]
)
def test_the_original_entrys_own_line_takes_random_views(
    runs: Path,
    eval_root: Path,
    tmp_path: Path,
    name: str,
    transform: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """(16.25) `auto` with several views: what the transform that belongs to each member's own
    shows, not a refusal.
    """
    words = ("--root", str(run_of(runs, name)), "--method", "soft", "--top-k", "3", "--tta", "2")
    auto = submission.load_probabilities(
        predict(submit_ensemble, eval_root, tmp_path, "--transform-type", *words)
    )
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    own = {"random": "random", "facecrop": "facecrop", "strong": "facerandom"}[name]
    assert [note for note in notes if "auto takes" in note] == [
        note for note in notes if own != transform
    ]
    assert all(
        note.startswith(f"note: --tta 2 needs random views, so auto takes {transform} for {own}")
        for note in notes
    )
    assert (
        all("--tta 1 looks where validation did" in note for note in notes)
        if name == "random"
        else len(notes) <= 1
    )
    given = submission.load_probabilities(
        predict(submit_ensemble, eval_root, tmp_path, "--transform-type", transform, *words)
    )
    assert np.array_equal(auto.array, given.array)
    assert not np.array_equal(auto.array[:, 0], auto.array[:, 1])


def test_notes_name_a_way_that_looks_where_validation_did(
    runs: Path, eval_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """(16.25) They sent people from `tta` to `auto` and back."""
    words = {
        name: ("--root", str(run_of(runs, name)), "--tta", "2") for name in ("random", "facecrop")
    }
    predict(submit_ensemble, eval_root, tmp_path, *words["random"])
    told = capsys.readouterr().out
    assert "tta looks at the middle 384 pixels, validation looked at the middle 224 pixels" in told
    assert "; --transform-type auto with --tta 1 looks where validation did" in told
    predict(submit_ensemble, eval_root, tmp_path, *words["facecrop"])
    assert (
        "validation looked at the face; --transform-type auto looks where validation did"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("fixed", "random"), [("base", "tta"), ("random", "tta"), ("facecrop", "facerandom")]
)
def test_several_views_of_a_fixed_transform_are_refused_with_the_one_that_has_them(
    fixed: str, random: str
) -> None:
    """(16.25)"""
    asked = config.EnsembleSettings.parse(
        ["--tta", "3", "--transform-type", fixed], "submit_ensemble.py", ""
    )
    with pytest.raises(
        UserError,
        match=f"^--tta 3: transform {fixed} shows every view alike; use --transform-type {random},",
    ):
        asked.completed()


def test_a_registered_transform_brings_its_random_form_along(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """(16.25)"""
    for name, random in (("mine", "tta"), ("alone", "")):
        monkeypatch.setitem(
            registries.TRANSFORMS,
            name,
            registries.Transform("augmentation:base", "all of it", False, random),
        )
    info = checkpoint.CheckpointInfo(
        "VanillaResNet", "main", "mine", "tiny", 32, 32, 0, 1, 0.5, 1.0
    )
    member = checkpoint.Checkpoint("m", Path("m.pth"), {}, info)
    assert predictor.resolve_transforms([member], "auto", 2) == ["tta"]
    assert predictor.resolve_transforms([member], "auto", 1) == ["mine"]
    alone = dataclasses.replace(member, known_info=dataclasses.replace(info, transform="alone"))
    with pytest.raises(
        UserError, match="--tta 2: transform alone shows every view alike; use --tta 1"
    ):
        predictor.resolve_transforms([member, alone], "auto", 2)


# --- run.json (16.27)


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "other",
    [
        {"machine": [1]},
        {"machine": "x"},
        {"versions": None},
        {"versions": 3},
        {"command": 7},
        {"command": "train.py"},
        {"machine": {"gpu": nested(500)}},
        {"more": nested(500)},
        {"settings": {"task": nested(500)}},
    ],
)
def test_what_run_json_holds_is_checked_before_the_work(
    runs: Path,
    small_root: Path,
    eval_root: Path,
    tmp_path: Path,
    other: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """(16.27) Not by a traceback in the report, after all the work."""
    home = run_without(runs, tmp_path, "facecrop", "strong", "mask")
    tree = run_of(home, "random")
    (tree / "run.json").write_text(
        json.dumps({**json.loads((tree / "run.json").read_text()), **other})
    )
    monkeypatch.setattr(predictor.engine, "predict", lambda *_: pytest.fail("predicted"))
    with pytest.raises(UserError, match=r"run\.json: .*; restore or remove it"):
        predict(submit_ensemble, eval_root, tmp_path / "p", "--root", str(tree))
    with pytest.raises(UserError, match=r"run\.json: .*; restore or remove it"):
        train.main(
            [
                "--train-root",
                str(small_root),
                "--save-path",
                str(home / SAVED),
                "--run-name",
                "random",
                "--epochs",
                "1",
                *support.FAST,
            ]
        )


@pytest.mark.parametrize(
    "counts",
    [
        {},
        {"a": 1},
        dict.fromkeys([*TASKS["main"].classes, "more"], 1),
        dict.fromkeys(TASKS["main"].classes, -1),
        dict.fromkeys(TASKS["main"].classes, "1"),
        [1, 2],
        dict.fromkeys(TASKS["main"].classes, 0),
    ],
    ids=["none", "one", "more", "negative", "text", "list", "zero"],
)
def test_counts_of_classes_that_do_not_fit_are_no_traceback(
    runs: Path, eval_root: Path, tmp_path: Path, counts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(16.27) The report does without the training's shares, or takes those of the classes it
    knows.
    """
    home = run_without(runs, tmp_path, "facecrop", "strong", "mask")
    tree = run_of(home, "random")
    run = json.loads((tree / "run.json").read_text())
    run["data"]["photographs_per_class"] = counts
    (tree / "run.json").write_text(json.dumps(run))
    made = predict(submit_ensemble, eval_root, tmp_path / "p", "--root", str(tree))
    shares = json.loads((made / "report.json").read_text())["training_shares"]
    assert shares == (
        pytest.approx([1 / 18] * 18) if isinstance(counts, dict) and len(counts) == 19 else None
    )
    assert (made / "report.html").is_file()
    spoilt = shutil.copytree(eval_root, tmp_path / "eval")
    next((spoilt / "images").iterdir()).write_bytes(b"")
    predict(submit_ensemble, spoilt, tmp_path / "p", "--root", str(tree), "--skip-bad-images")


# --- bounds, folders, remedies (16.31)


def test_the_number_of_views_has_a_bound() -> None:
    """(16.31)"""
    for views in ("0", "1001", "1000000"):
        with pytest.raises(
            UserError,
            match=f"--tta: {views} is out of range: it must be at least 1 and at most 1,000 ",
        ):
            config.EnsembleSettings.parse(["--tta", views], "submit_ensemble.py", "")


def test_a_plan_of_many_views_numbers_each_once() -> None:
    """(16.31)"""
    kinds = [("a", "tta", 32), ("b", "base", 32), ("c", "base", 32), ("d", "tta", 32)]
    views, plan = augmentation.plan_views(kinds, 1000, False)
    assert len(views) == 2001
    assert plan == [list(range(1000)), [1000] * 1000, [1000] * 1000, list(range(1001, 2001))]
    assert [view.key for view in views[:2]] == [("view", "a", 0), ("view", "a", 1)]


@pytest.mark.parametrize("below", ["", "more/folders"])
def test_a_link_to_nothing_as_the_place_of_results_is_named_before_the_work(
    runs: Path,
    small_root: Path,
    eval_root: Path,
    tmp_path: Path,
    below: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """(16.31) It was told as 999 folders."""
    (tmp_path / "link").symlink_to(tmp_path / "unplugged")
    place = tmp_path / "link" / below
    monkeypatch.setattr(predictor.engine, "predict", lambda *_: pytest.fail("predicted"))
    with pytest.raises(
        UserError, match=rf"^{place}: .*link is a link to nothing\); name another with --save-path"
    ):
        predict(submit_ensemble, eval_root, place, "--root", str(run_of(runs, "random")))
    for name in ((), ("--run-name", "x")):
        with pytest.raises(
            UserError, match=r"cannot be used \(.*link is a link to nothing\); .*--save-path"
        ):
            train.main(
                ["--train-root", str(small_root), "--save-path", str(place), *support.FAST, *name]
            )
    with pytest.raises(UserError, match="link to nothing"):
        create_new_folder(place, "x")


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path) -> None:
    """(16.31)"""
    (tmp_path / "file").write_text("")
    for place in ("file", "file/below"):
        with pytest.raises(
            UserError, match=r"cannot be used \(.*file is not a writable folder\); .*--save-path"
        ):
            create_new_folder(tmp_path / place, "x")


def test_new_folders_never_share_a_name(tmp_path: Path) -> None:
    (tmp_path / "x-2").symlink_to(tmp_path / "gone")
    assert [create_new_folder(tmp_path, "x").name for _ in range(3)] == ["x", "x-3", "x-4"]


@pytest.mark.parametrize(
    ("script", "settings", "remedy"),
    [
        ("submit_singular.py", config.SingularSettings, "start it again"),
        ("submit_ensemble.py", config.EnsembleSettings, "start it again"),
        ("train.py", config.TrainSettings, "start it again"),
    ],
)
def test_the_remedy_of_a_failing_machine_fits_the_command(
    tmp_path: Path,
    script: str,
    settings: type[config.MachineSettings],
    remedy: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """(16.31) No submission can go on with --resume."""
    for other in (
        config.TrainSettings,
        config.SingularSettings,
        settings,
    ):  # the last one's words count
        other.parse([], script, "")

    def write(name: str) -> None:
        with atomic_write(tmp_path / name):
            raise OSError(28, "No space left on device")

    for name in ("a", "none/a"):
        with pytest.raises(RunError, match=f"cannot be written .*, then {remedy}$"):
            write(name)
    with pytest.raises(RunError, match=f", then {remedy}$"):
        raise path_error("a.jpg", OSError(24, "Too many open files"), "check its permissions")

    def fail(_: object) -> int:
        raise OSError(5, "Input/output error", "a")

    assert run_script(fail, script) == 1
    assert capsys.readouterr().err == (
        f"{script}: error: a: cannot be used (Input/output error); the machine failed, not the "
        f"file: mend that, then {remedy}\n"
    )


# --- the small ones


@pytest.mark.parametrize(("count", "told"), [(0, "0 folds"), (1, "1 fold"), (2, "2 folds")])
def test_numbers_and_their_words_agree(count: int, told: str) -> None:
    assert plural(count, "fold") == told
    assert plural(count, "person", "people") == f"{count} {'person' if count == 1 else 'people'}"


def test_one_of_a_kind_is_told_in_the_singular(
    small_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """(16: 1 views, 1 folds)"""
    words = [
        "--train-root",
        str(small_root),
        "--save-path",
        str(tmp_path),
        *support.FAST,
        "--epochs",
        "1",
    ]
    assert train.main([*words, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "; held out per fold: 1 person\n" in told
    assert ", 1 thread, 0 workers\n" in told
    assert " for 1 fold x 1 epoch\n" in told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["--task", "age", "--loss-type", "mseloss"],
            "--loss-type mseloss: does not fit --task age of Factorised, and --recipe strong sets "
            "--model-type Factorised; leave --recipe out, or give another --model-type",
        ),
        (
            ["--task", "age", "--model-type", "VanillaResNet"],
            "--loss-type crossentropyloss: does not fit --task age of VanillaResNet, and --recipe "
            "strong sets --loss-type crossentropyloss; leave --recipe out, or give another "
            "--loss-type",
        ),
        (
            ["--task", "age", "--model-type", "THANet"],
            f"--task age: THANet_MK1 has no head for it; use --model-type {ABLE_OF_AGE}",
        ),
        (["--folds", "7", "--run-name", "x"], "--folds 7: count from 0 to 4"),
    ],
)
def test_what_a_recipe_set_is_refused_in_the_users_words(words: list[str], told: str) -> None:
    """(16: --recipe strong --task age)"""
    with pytest.raises(UserError) as refusal:
        config.TrainSettings.parse(["--recipe", "strong", *words], "train.py", "").completed()
    assert str(refusal.value) == told


def test_a_recipes_line_tells_what_runs(
    small_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """(16: --recipe strong --cv 2)"""
    words = [
        "--train-root",
        str(small_root),
        "--save-path",
        str(tmp_path),
        *support.FAST,
        "--recipe",
        "strong",
        "--lr",
        "0.02",
    ]
    assert train.main([*words, "--cv", "2", "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == (
        "recipe strong: --cv 2 --model-type Factorised --transform-type facerandom --loss-type "
        "crossentropyloss --lr 0.02"
    )


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("--epoch", "; did you mean --epochs?"),
        ("--ephocs=3", "; did you mean --epochs?"),
        ("--batch", "did you mean --batch-size?"),
        ("--batch_siez", "did you mean --batch-size?"),
        ("--freze", "did you mean --freeze?"),
        ("--warmup", "did you mean --warmup-epochs?"),
        ("--xyzzy", "--xyzzy 3 (see --help)"),
    ],
)
def test_a_misspelt_option_is_answered_with_the_one_meant(word: str, told: str) -> None:
    """(16: did you mean --epochs)"""
    with pytest.raises(UserError) as refusal:
        config.TrainSettings.parse([word, "3"], "train.py", "")
    assert told in str(refusal.value)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--epochs", "0"], "0 is out of range: it must be at least 1 and at most 1,000,000"),
        (["--lr", "0"], "0 is out of range: it must be above 0 and at most 1,000,000"),
        (["--seed", "-1"], "it must be at least 0 and at most 9,223,372,036,854,775,807"),
    ],
)
def test_bounds_are_told_in_digits(words: list[str], told: str) -> None:
    """(16: --epochs 0 told without 1e+06)"""
    with pytest.raises(UserError) as refusal:
        config.TrainSettings.parse(words, "train.py", "")
    assert told in str(refusal.value)


def test_where_no_member_is_right_the_weighted_mean_breaks_no_exact_tie() -> None:
    """(16: all F1 = 0) Classes 0 and 1 get the same three probabilities from other members: the
    lowest class wins.
    """
    shares = np.array([[0.1, 0.7], [0.7, 0.2], [0.2, 0.1]], np.float32)
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0], [1, 0, 2]):
        for flipped in (shares, shares[:, ::-1]):
            array = np.zeros((3, 1, 1, 3), np.float32)
            array[:, 0, 0, :2] = flipped[order]
            for weights in ([0.0] * 3, [0.3] * 3):
                assert ensemble.vote("softvoting", "mask", array, weights)[
                    "weighted_mean"
                ].tolist() == [0]
                assert np.array_equal(
                    ensemble.weighted_mean(array, weights), ensemble.arithmetic(array)
                )
    assert ensemble.weighted_mean(array, [1.0, 0.0, 3.0]) == pytest.approx(
        (array[0, 0] + 3 * array[2, 0]) / 4
    )


# --- a task that users register

OVER = Task(lambda mask, gender, years: int(years >= 40), ("young", "older"))
WORN = Task(
    lambda mask, gender, years: int(mask == 2), ("on", "off"), tuple(int(c > 11) for c in range(18))
)


@pytest.mark.parametrize(("name", "task"), [("over40", OVER), ("worn", WORN)])
def test_a_registered_task_trains_and_votes_in_several_trees(
    small_root: Path,
    eval_root: Path,
    tmp_path: Path,
    name: str,
    task: Task,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """(16: a new task breaks --root A B)"""
    words = [
        "--train-root",
        str(small_root),
        "--save-path",
        str(tmp_path / "saved"),
        "--cv",
        "2",
        "--epochs",
        "1",
        "--quiet",
    ]
    assert train.main([*words, "--run-name", "before", *support.FAST]) == 0
    monkeypatch.setitem(TASKS, name, task)
    for seed in ("1", "2"):
        assert (
            train.main([*words, "--task", name, "--seed", seed, "--run-name", seed, *support.FAST])
            == 0
        )
    trees = {
        run: tmp_path / "saved" / f"kfold-ensemble-VanillaEfficientNet_{run}"
        for run in ("before", "1", "2")
    }
    capsys.readouterr()
    made = predict(
        submit_ensemble,
        eval_root,
        tmp_path / "p",
        "--task",
        name,
        "--root",
        str(trees["1"]),
        str(trees["2"]),
    )
    told = capsys.readouterr().out
    assert f"  mixture: {name} macro F1 " in told
    assert submission.load_probabilities(made).array.shape == (4, 1, 9, 2)
    shares = json.loads((made / "report.json").read_text())["training_shares"]
    rows = tables.read_train(str(small_root))
    assert shares == pytest.approx(np.bincount(rows[name], minlength=2) / len(rows))
    held = out_of_fold.read_oof(trees["1"], name)
    older = out_of_fold.read_oof(trees["before"], "main")  # its oof.csv knows nothing of the task
    assert held is not None
    assert older is not None
    assert held[0].set_index("file")[name].to_dict() == older[0].set_index("file")[name].to_dict()
    assert set(pd.read_csv(trees["1"] / out_of_fold.OOF_FILE, nrows=1)) >= {
        "mask",
        "gender",
        "age",
        "ageg",
        "main",
        name,
    }
    if task.from_main:
        both = ("--root", str(trees["1"]), str(trees["before"]))
        made = predict(submit_ensemble, eval_root, tmp_path / "p", "--task", name, *both)
        assert submission.load_probabilities(made).array.shape == (4, 1, 9, 2)
        assert f"  mixture: {name} macro F1 " in capsys.readouterr().out


@pytest.mark.parametrize("model_type", ["Factorised", "MultiLabelTHANet"])
def test_a_task_that_main_tells_is_answered_by_models_of_three_parts(
    small_root: Path,
    eval_root: Path,
    tmp_path: Path,
    model_type: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """(16: a new task) Training one was allowed, answering it was not."""
    monkeypatch.setitem(TASKS, "worn", WORN)
    words = [
        "--train-root",
        str(small_root),
        "--save-path",
        str(tmp_path / "saved"),
        "--epochs",
        "1",
        "--model-type",
        model_type,
    ]
    assert train.main([*words, *support.FAST]) == 0
    (tree,) = (tmp_path / "saved").iterdir()
    worn, main = (
        submission.load_probabilities(
            predict(submit_ensemble, eval_root, tmp_path / "p", "--task", task, "--root", str(tree))
        ).array
        for task in ("worn", "main")
    )
    assert worn == pytest.approx(
        np.stack([main[..., :12].sum(-1), main[..., 12:].sum(-1)], -1), abs=1e-6
    )


def test_columns_of_an_out_of_fold_table_are_in_their_old_order(tree: Path) -> None:
    header = (tree / out_of_fold.OOF_FILE).read_text().partition("\n")[0]
    assert header.startswith("file,person,fold,mask,gender,age,ageg,main,p0,p1,")


@pytest.mark.parametrize("change", [(",p0", ",q0"), ("file,", "person,"), ("gender", "sex")])
def test_an_out_of_fold_table_without_a_column_is_refused(
    tree: Path, tmp_path: Path, change: tuple[str, str]
) -> None:
    (tmp_path / out_of_fold.OOF_FILE).write_text(
        (tree / out_of_fold.OOF_FILE).read_text().replace(*change, 1)
    )
    with pytest.raises(UserError, match=r"oof\.csv: (no column|the column)"):
        out_of_fold.read_oof(tmp_path, "main")


def test_probabilities_out_of_fold_that_are_none_are_refused(tree: Path, tmp_path: Path) -> None:
    """(16.7)"""
    whole = pd.read_csv(tree / out_of_fold.OOF_FILE)
    for other in (
        {"p0": 1e300},
        {"p0": -0.5},
        {"p3": np.nan},
        {"mask": 3},
        {"age": 201.0},
        {"fold": np.nan},
    ):
        whole.assign(**other).to_csv(tmp_path / out_of_fold.OOF_FILE, index=False)
        with pytest.raises(UserError, match=r"oof\.csv: .*--resume that run"):
            out_of_fold.read_oof(tmp_path, "main")


# --- the file to upload, single photographs, Python


def predicted(script: Any, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[Path, str]:
    """(the prediction's folder by the last printed line, all that was printed)."""
    capsys.readouterr()
    assert script.main([*words, "--workers", "0", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    path = Path(out.splitlines()[-1])
    assert path.name == "submission.csv"
    assert path.is_file()
    return path.parent, out


def test_the_last_line_is_the_file_to_upload(
    tree: Path, eval_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """(18.2) Whatever the vote, with and without labels; a vote on a vote keeps its name."""
    data = ("--data-root", str(eval_root), "--save-path", str(tmp_path))
    answers = ("--answers", str(eval_root / "answers.csv"))
    soft, out = predicted(submit_ensemble, capsys, "--root", str(tree), *data, *answers)
    assert "submission.csv is arithmetic.csv: " in out
    assert (soft / "submission.csv").read_bytes() == (soft / "arithmetic.csv").read_bytes()
    again, _ = predicted(submit_ensemble, capsys, "--from-probs", str(soft), *data[2:])
    hard = ("--method", "hard", "--from-probs", str(again))
    third, out = predicted(submit_ensemble, capsys, *hard, *data[2:])
    assert "submission.csv is hardvoting.csv: " in out
    assert (third / "submission.csv").read_bytes() == (third / "hardvoting.csv").read_bytes()
    titles = [folder.name.partition("_main_")[0] for folder in (soft, again, third)]
    assert titles[1:] == [titles[0] + "_again"] * 2
    path = str(next((tree / "fold00").glob("*.pth")))
    single, out = predicted(submit_singular, capsys, "--load-state-dict", path, *data, *answers)
    assert "submission.csv  macro F1" in out
    assert not (single / "arithmetic.csv").exists()


def test_a_single_photograph_and_a_plain_folder_are_answered_with_class_names(
    tree: Path, eval_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """(18.7)"""
    photos = sorted((eval_root / "images").glob("*.jpg"))[:2]
    plain = tmp_path / "plain"
    plain.mkdir()
    for photo in photos:
        shutil.copy(photo, plain)
    checkpoint_path = str(next((tree / "fold00").glob("*.pth")))
    words = ("--load-state-dict", checkpoint_path, "--save-path", str(tmp_path / "p"))
    seen = []
    for root in (photos[0], plain):
        folder, out = predicted(submit_singular, capsys, *words, "--data-root", str(root))
        rows = support.read_rows(folder / "submission.csv")[1:]
        assert [row[0] for row in rows] == [p.name for p in photos[: len(rows)]]
        name = TASKS["main"].classes[int(rows[0][1])]
        assert re.search(rf"{re.escape(photos[0].name)}: {name} \(0\.\d\d\)", out)
        seen.append(rows[0])
    assert seen[0] == seen[1]
    _, out = predicted(
        submit_singular, capsys, *words, "--data-root", str(plain), "--task", "gender"
    )
    assert re.search(r": (fe)?male \(", out)


def test_a_run_predicts_from_python_as_the_script_does(
    tree: Path, eval_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """(18.7) Files, folders, images and arrays in one table."""
    out_words = ("--data-root", str(eval_root), "--save-path", str(tmp_path))
    words = ("--root", str(tree), *out_words, "--top-k", "1", "--transform-type", "auto")
    folder, _ = predicted(submit_ensemble, capsys, *words)
    classes = {name: int(c) for name, c in support.read_rows(folder / "submission.csv")[1:]}
    photos = sorted((eval_root / "images").glob("*.jpg"))
    loaded = predictor.Predictor.load(tree, top_k=1, device="cpu")
    table = loaded.predict(eval_root / "images")
    files = [name for name in table["file"] if name in classes]
    assert len(files) == len(classes)
    by_file = table.set_index("file")
    assert {name: int(by_file.loc[name, "class"]) for name in files} == classes
    assert list(table.columns[:6]) == ["file", "class", "name", "mask", "gender", "ageg"]
    assert np.allclose(table[[f"p{k}" for k in range(18)]].sum(axis=1), 1, atol=1e-4)
    image = images.read_image(str(photos[0]))
    mixed = loaded.predict([photos[0], image, np.asarray(image)])
    assert list(mixed["file"]) == [str(photos[0]), "image 1", "image 2"]
    assert mixed["p0"].nunique() == 1
    assert loaded.predict(str(photos[0]), tta=1).shape == (1, 24)
    single = predictor.Predictor.load(next((tree / "fold00").glob("*.pth")), task="ageg")
    assert list(single.predict(photos[0]).columns) == ["file", "class", "name", "p0", "p1", "p2"]
    refused: list[tuple[Any, str]] = [
        (str(tmp_path / "gone.jpg"), "gone.jpg"),
        (np.zeros((4, 4)), r"an array float64 \[4, 4\] is no image"),
        (np.zeros((0, 4, 3), np.uint8), r"an array uint8 \[0, 4, 3\] is no image"),
        ([photos[0].read_bytes(), 3], r"an array \S+ \[\] is no image"),
        (tmp_path, "no photographs in it"),
    ]
    for wrong, message in refused:
        with pytest.raises(UserError, match=message):
            loaded.predict(wrong)


@pytest.mark.parametrize(
    "option",
    [{"task": "masks"}, {"top_k": 0}, {"batch_size": 0}, {"precision": "fp8"}, {"backend": "onnx"}],
)
def test_python_refuses_the_values_that_the_scripts_refuse(
    tree: Path, option: dict[str, Any]
) -> None:
    ((name, value),) = option.items()
    with pytest.raises(UserError, match=f"--{name.replace('_', '-')}: '?{value}'? is "):
        predictor.Predictor.load(tree, **option)


def test_python_takes_views_and_names_as_the_scripts_do(tree: Path, eval_root: Path) -> None:
    photo = next((eval_root / "images").glob("*.jpg"))
    loaded = predictor.Predictor.load(tree, task="MASK", top_k=1, device="cpu")
    assert loaded.predict(photo, 2, "TTA").shape == (1, 6)
    for tta, transform in ((0, "auto"), (1, "rotated")):
        with pytest.raises(UserError, match="0 is out of range|'rotated' is not one of base"):
            loaded.predict(photo, tta, transform)


def test_the_notebook_runs(
    tree: Path, eval_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(18.7) Cell by cell, on a run and photographs where it looks for them."""
    page = Path(submit_ensemble.__file__).parent / "docs" / "predict.ipynb"
    notebook = json.loads(page.read_text(encoding="utf-8"))
    shutil.copytree(tree, tmp_path / "saved_models" / tree.name)
    shutil.copytree(eval_root / "images", tmp_path / "input" / "data" / "eval" / "images")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert len(names["least_sure"]) == 5
    assert names["least_sure"]["confidence"].between(1 / 18, 1).all()
