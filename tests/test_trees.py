"""Several trees that vote together: members, products of parts, the mixture's out-of-fold score,
fitted weights.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import support
from PIL import Image

import checkpoint
import config
import ensemble
import metrics
import outoffold
import photographs
import submission
import submit_ensemble
import train
import trees
from utils import UserError


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
        patch.setitem(config.BACKBONES, "tiny", support.TINY)
        patch.setitem(config.BACKBONES, "tiny-resnet", support.TINY_RESNET)
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
    plain = photographs.read_photo

    def counted(path: str) -> Image.Image:
        decoded.append(path)
        return plain(path)

    monkeypatch.setattr(photographs, "read_photo", counted)
    both = submission.load(
        predict(
            eval_root, tmp_path, [tree, grown["seed"]], "--top-k", "1", "--transform-type", "auto"
        )
    )
    assert len(decoded) == len(set(decoded)) == len(both.images) == 9
    out = capsys.readouterr().out
    alone = [
        submission.load(
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
    held = [outoffold.read(root, "main") for root in (tree, grown["seed"])]
    (rows, first), (others, second) = [one for one in held if one is not None]
    assert rows["file"].tolist() == others["file"].tolist()
    truth, answers = rows["main"].to_numpy(), (first + second) / 2
    scores = metrics.score("main", answers.argmax(1), truth)
    draws = metrics.bootstrap_people(truth, answers.argmax(1), rows["person"].to_numpy(), 18)
    low, high = metrics.out_of_fold_interval(scores.macro_f1, metrics.macro_f1s(draws), 2)
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
    whole = submission.load(predict(eval_root, tmp_path / "whole", roots, *words))
    out = capsys.readouterr().out
    parts = {
        part: submission.load(
            predict(eval_root, tmp_path / part, [grown[part]], *words, "--task", part)
        )
        for part in config.PARTS
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
    assert whole.weights == pytest.approx(
        np.prod([parts[part].weights for part in config.PARTS], axis=0)
    )
    (made,) = (tmp_path / "whole").iterdir()
    with pytest.raises(UserError, match="one tree keep it"):  # a mixture has no rule
        submit_ensemble.main(["--from-probs", str(made), "--decision", "macro-f1"])
    assert whole.members[3] == "mask x gender x ageg/fold01/Fold01_rank2"
    held = {part: outoffold.read(grown[part], part) for part in config.PARTS}
    answers = ensemble.multiply(
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
    probs = submission.load(predict(eval_root, tmp_path, roots, "--top-k", "1", "--tta", "2"))
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

    mask, gender, ageg = (grown[part] for part in config.PARTS)
    assert (
        "trained for mask and gender answer main only together with ageg; name a tree of ageg too"
        in refused(mask, gender)
    )
    assert "trained for mask answer main only together with gender and ageg" in refused(tree, mask)
    assert "was trained for mask; use --task mask" in refused(mask)
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
    oof = ("--weights", "oof")
    assert f"{mask} was trained for mask" in refused(mask, gender, ageg, words=oof)
    assert "hold out other photographs" in refused(tree, grown["elsewhere"], words=oof)
    bare = shutil.copytree(tree, tmp_path / tree.name)
    (bare / "fold01" / checkpoint.VALIDATION).unlink()
    assert "fold01/validation.npz is missing; train the fold again, or use --weights f1" in refused(
        bare, words=oof
    )
    (bare / outoffold.FILE).unlink()
    assert "oof.csv is missing; finish that training, or use --weights f1" in refused(
        bare, words=oof
    )
    assert "--method hardvoting has no use for it" in refused(
        tree, words=(*oof, "--method", "hard")
    )
    assert not (tmp_path / "p").exists()


def test_trees_of_other_folds_vote_without_a_score(
    tree: Path,
    grown: dict[str, Path],
    eval_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    probs = submission.load(
        predict(eval_root, tmp_path, [tree, grown["elsewhere"]], "--top-k", "1")
    )
    assert len(probs.members) == 4
    out = capsys.readouterr().out
    assert out.count("the mixture has no score") == 1
    assert "mixture:" not in out


def test_weights_are_chosen_on_what_each_member_said_of_its_held_out_people(
    tree: Path,
    grown: dict[str, Path],
    eval_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    roots = [tree, grown["seed"]]
    made = predict(eval_root, tmp_path, roots, "--top-k", "2", "--weights", "oof")
    told = capsys.readouterr().out
    lines = [line for line in told.splitlines() if line.startswith("weights, fold ")]
    assert re.search(
        r"weights chosen on the other half: [+-][\d.]+ out of fold, nested \(95 % .*\): \w+", told
    )
    probs = submission.load(made)
    assert len(lines) == 2
    for fold in range(2):
        own = [m for m, f in enumerate(probs.folds) if f == fold]
        answers: list[np.ndarray] = []
        files: list[str] = []
        for m in own:
            stored = checkpoint.read_validation(tree.parent / Path(probs.members[m]).parent, "main")
            epoch = re.search(r"ep\((\d+)\)", probs.members[m])
            assert stored is not None
            assert epoch is not None
            files = stored[0]
            answers.append(stored[1][int(epoch[1]) - 1])
        held = outoffold.read(tree, "main")
        assert held is not None
        truth = held[0].set_index("file").loc[files, "main"].to_numpy()
        counts = ensemble.greedy_weights(np.stack(answers), truth, 20)
        assert [probs.weights[m] for m in own] == pytest.approx(counts / counts.sum() / 2)
    named = [re.findall(r"f1\(([\d.]+)\)", name)[0] for name in probs.members]
    assert probs.f1 == pytest.approx([float(value) for value in named], abs=1e-4)

    # stored, they vote again; the validation F1 is there too
    again = ["--from-probs", str(made), "--save-path"]
    for number, words in enumerate(([], ["--weights", "oof"], ["--weights", "f1", "--top-k", "1"])):
        assert submit_ensemble.main([*again, str(tmp_path / str(number)), *words]) == 0
    for number in (0, 1):
        (folder,) = (tmp_path / str(number)).iterdir()
        assert (folder / "weighted_mean.csv").read_bytes() == (
            made / "weighted_mean.csv"
        ).read_bytes()
    (plain,) = (tmp_path / "2").iterdir()
    best = [
        max(f1 for f1, own in zip(probs.f1, probs.folds, strict=True) if own == fold)
        for fold in (0, 1)
    ]
    assert submission.load(plain).weights == best
    with pytest.raises(UserError, match="add --weights f1"):
        submit_ensemble.main([*again, str(tmp_path), "--top-k", "1"])
    with pytest.raises(UserError, match="hold no such weights"):
        submit_ensemble.main(
            ["--from-probs", str(plain), "--save-path", str(tmp_path), "--weights", "oof"]
        )


def test_halves_are_decided_by_weights_that_never_saw_them() -> None:
    truth, people = np.array([0, 1] * 4), np.array(list("aabbccdd"))
    right, wrong = np.eye(2)[truth], np.eye(2)[1 - truth]
    second = np.isin(people, ["b", "d"])[:, None]
    half_right = np.where(second, wrong, right)  # on a and c, where nothing tells against it
    plain, fitted = trees.in_halves(
        np.stack([half_right, right * 0.6 + 0.2]), truth, people, [0.0, 1.0]
    )
    assert (plain == truth).all()
    assert (fitted == truth).tolist() == (~second[:, 0]).tolist()


def test_greedy_weights_on_hand_made_cases() -> None:
    truth = np.array([0, 0, 1, 1, 2, 2])
    right = np.eye(3)[truth] * 0.8 + 0.2 / 3
    wrong = np.eye(3)[(truth + 1) % 3] * 0.8 + 0.2 / 3
    assert ensemble.greedy_weights(np.stack([wrong, right, wrong]), truth, 10).tolist() == [0, 1, 0]
    # Each is blind to one class and sure of another: only together, and the stronger one twice, are
    # they right.
    a, b = right.copy(), right.copy()
    a[truth == 0], b[truth == 1] = [0.1, 0.5, 0.4], [0.85, 0.05, 0.1]
    b[truth == 0] = [0.95, 0.03, 0.02]
    a[truth == 1] = [0.02, 0.96, 0.02]
    together = ensemble.greedy_weights(np.stack([a, b, wrong]), truth, 10)
    assert metrics.score("mask", (a * together[0] + b * together[1]).argmax(1), truth).macro_f1 == 1
    assert together[2] == 0
    assert (together[:2] > 0).all()


def test_greedy_weights_never_lose_to_the_best_member() -> None:
    for seed in range(20):
        draw = np.random.default_rng(seed)
        truth = draw.integers(0, 4, 40)
        members = draw.dirichlet(np.ones(4), (5, 40)) + 0.3 * np.eye(4)[truth]
        counts = ensemble.greedy_weights(members, truth, 15)
        scores = [metrics.macro_f1(metrics.confusion(truth, one.argmax(1), 4)) for one in members]
        mixed = metrics.macro_f1(
            metrics.confusion(truth, np.tensordot(counts, members, 1).argmax(1), 4)
        )
        assert mixed >= max(scores)
        assert counts.min() >= 0
