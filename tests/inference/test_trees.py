"""Several trees that vote together: members, products of parts, the mixture's out-of-fold score."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ensemble
import metrics
import out_of_fold
import registries
import submit_ensemble
import train
from data import images
from inference import submission
from labels import PARTS
from reporting import summary
from runtime.errors import UserError
from tests.helpers import support


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Trees of two folds that they share: `main`, one for each part, one of another size and model;
    one of other folds.
    """
    saved = tmp_path_factory.mktemp("grown")
    root = support.make_train(
        tmp_path_factory.mktemp("few") / "train", support.PEOPLE[:6], junk=False
    )
    trees = {
        "main": [],
        "mask": ["--task", "mask", "--image-size", "48"],
        "gender": ["--task", "gender", "--transform-type", "tta"],
        "ageg": ["--task", "ageg"],
        "seed": [
            "--seed",
            "7",
            "--image-size",
            "48",
            "--backbone",
            "tiny-resnet",
            "--model-type",
            "VanillaResNet",
        ],
        "elsewhere": ["--split-seed", "7", "--epochs", "1"],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registries.BACKBONES, "tiny", support.TINY)
        patch.setitem(registries.BACKBONES, "tiny-resnet", support.TINY_RESNET)
        for name, words in trees.items():
            assert (
                train.main(
                    [
                        "--train-root",
                        str(root),
                        "--save-path",
                        str(saved),
                        "--epochs",
                        "2",
                        "--cv",
                        "2",
                        "--quiet",
                        "--save-top",
                        "2",
                        "--run-name",
                        name,
                        *support.FAST,
                        *words,
                    ]
                )
                == 0
            )
    return {name: next(saved.glob(f"*_{name}")) for name in trees}


@pytest.fixture
def tree(grown: dict[str, Path]) -> Path:
    return grown["main"]


def predict(eval_root: Path, out: Path, roots: list[Path], *words: str) -> Path:
    """A new prediction's folder."""
    before = set(out.iterdir()) if out.is_dir() else set()
    assert (
        submit_ensemble.main(
            [
                "--root",
                *map(str, roots),
                "--data-root",
                str(eval_root),
                "--save-path",
                str(out),
                "--device",
                "cpu",
                "--threads",
                "1",
                "--workers",
                "0",
                *words,
            ]
        )
        == 0
    )
    (made,) = set(out.iterdir()) - before
    return made


def test_two_trees_vote_each_photograph_decoded_once(
    tree: Path,
    grown: dict[str, Path],
    eval_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    decoded: list[str] = []
    plain = images.read_image

    def counted(path: str) -> Image.Image:
        decoded.append(path)
        return plain(path)

    monkeypatch.setattr(images, "read_image", counted)
    monkeypatch.setattr(summary, "prediction_report", lambda *_: None)
    both = submission.load_probabilities(
        predict(
            eval_root, tmp_path, [tree, grown["seed"]], "--top-k", "1", "--transform-type", "auto"
        )
    )
    assert len(decoded) == len(set(decoded)) == len(both.images) == 9
    out = capsys.readouterr().out
    alone = [
        submission.load_probabilities(
            predict(eval_root, tmp_path, [root], "--top-k", "1", "--transform-type", "auto")
        )
        for root in (tree, grown["seed"])
    ]
    assert both.array == pytest.approx(np.concatenate([one.array for one in alone]), abs=1e-5)
    names = [
        f"{root.name}/{name}"
        for root, one in zip((tree, grown["seed"]), alone, strict=True)
        for name in one.members
    ]
    assert both.members == names
    assert both.folds == [0, 1, 0, 1]
    made = next(p for p in tmp_path.iterdir() if p.name.startswith(f"{tree.name}-and-1-more_main_"))
    assert len(list(made.glob("members/*/Fold*.csv"))) == 4

    # the mixture's score, from the trees' own tables
    held = [out_of_fold.read_oof(root, "main") for root in (tree, grown["seed"])]
    (rows, first), (others, second) = [one for one in held if one is not None]
    assert rows["file"].tolist() == others["file"].tolist()
    truth, answers = rows["main"].to_numpy(), (first + second) / 2
    scores = metrics.score("main", answers.argmax(1), truth)
    draws = metrics.bootstrap("main", answers.argmax(1), truth, rows["person"].to_numpy())
    low, high = metrics.out_of_fold_interval(scores.macro_f1, metrics.macro_f1(draws), 2)
    assert (
        f"  mixture: main macro F1 {scores.macro_f1:.4f} [{low:.4f}, {high:.4f}]  accuracy "
        f"{scores.accuracy:.4f} [" in out
    )
    own = metrics.score("main", second.argmax(1), truth)
    assert f"  {grown['seed'].name}: main macro F1 {own.macro_f1:.4f} [" in out


def test_trees_of_the_parts_multiply_into_main(
    grown: dict[str, Path], eval_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    roots = [grown[part] for part in ("ageg", "mask", "gender")]  # in any order
    words = ("--transform-type", "auto", "--top-k", "2")
    whole = submission.load_probabilities(predict(eval_root, tmp_path / "whole", roots, *words))
    out = capsys.readouterr().out
    parts = {
        part: submission.load_probabilities(
            predict(eval_root, tmp_path / part, [grown[part]], *words, "--task", part)
        )
        for part in PARTS
    }
    assert whole.array.shape == (4, 1, 9, 18)
    assert whole.array.sum(-1) == pytest.approx(1, abs=1e-5)
    for c in (0, 7, 17):
        expected = (
            parts["mask"].array[..., c // 6]
            * parts["gender"].array[..., c // 3 % 2]
            * parts["ageg"].array[..., c % 3]
        )
        assert whole.array[..., c] == pytest.approx(expected, abs=1e-6)
    assert whole.folds == parts["mask"].folds == [0, 0, 1, 1]
    assert whole.weights == pytest.approx(np.prod([parts[part].weights for part in PARTS], axis=0))
    (made,) = (tmp_path / "whole").iterdir()
    assert whole.members[3] == "mask x gender x ageg/fold01/Fold01_rank2"
    held = {part: out_of_fold.read_oof(grown[part], part) for part in PARTS}
    answers = ensemble.multiply_parts(
        {part: found[1] for part, found in held.items() if found is not None}
    )
    rows = held["mask"][0] if held["mask"] is not None else None
    assert rows is not None
    score = metrics.score("main", answers.argmax(1), rows["main"].to_numpy())
    assert re.search(
        rf"mixture: main macro F1 {score.macro_f1:.4f} .* accuracy {score.accuracy:.4f} ", out
    )
    report = json.loads((made / "report.json").read_text())
    assert report["training_shares"] == pytest.approx(
        np.bincount(rows["main"], minlength=18) / len(rows)
    )
    assert [
        note for note in report["made"]["notes"] if note.startswith("  mixture: main macro F1 ")
    ]
    assert f"{grown['gender'].name}: gender macro F1 " in out


def test_a_main_tree_votes_beside_a_product(
    tree: Path, grown: dict[str, Path], eval_root: Path, tmp_path: Path
) -> None:
    roots = [grown["mask"], tree, grown["gender"], grown["ageg"]]
    probs = submission.load_probabilities(
        predict(eval_root, tmp_path, roots, "--top-k", "1", "--tta", "2")
    )
    assert probs.array.shape == (4, 2, 9, 18)
    assert [name.split("/")[0] for name in probs.members] == [tree.name] * 2 + [
        "mask x gender x ageg"
    ] * 2


def test_what_does_not_go_together_is_refused(
    tree: Path, grown: dict[str, Path], eval_root: Path, tmp_path: Path
) -> None:
    def refused(*roots: Path, words: tuple[str, ...] = ()) -> str:
        with pytest.raises(UserError) as caught:
            predict(eval_root, tmp_path / "p", list(roots), *words)
        return str(caught.value)

    mask, gender, ageg = (grown[part] for part in PARTS)
    assert (
        "trained for mask and gender answer main only together with ageg; name a run of ageg too"
        in refused(mask, gender)
    )
    assert "trained for mask answer main only together with gender and ageg" in refused(tree, mask)
    assert refused(mask).endswith("was trained for mask; use --task mask")
    of_gender = refused(tree, mask, words=("--task", "gender"))
    assert of_gender.endswith("was trained for mask; use --task mask, or leave its run out")
    assert "named twice" in refused(tree, tree)
    fewer = shutil.copytree(gender, tmp_path / gender.name)
    next((fewer / "fold01").glob("*.pth")).unlink()
    assert "for fold 1: mask has 2, gender has 1, ageg has 2, and three" in refused(
        mask, fewer, ageg
    )
    shutil.rmtree(fewer / "fold01")
    assert "for fold 1: mask has 1, gender has 0" in refused(
        mask, fewer, ageg, words=("--top-k", "1")
    )
    assert not (tmp_path / "p").exists()


def test_trees_of_other_folds_vote_without_a_score(
    tree: Path,
    grown: dict[str, Path],
    eval_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    probs = submission.load_probabilities(
        predict(eval_root, tmp_path, [tree, grown["elsewhere"]], "--top-k", "1")
    )
    assert len(probs.members) == 4
    out = capsys.readouterr().out
    assert out.count("the mixture has no score") == 1
    assert "mixture:" not in out
