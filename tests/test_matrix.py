"""Every combination of models, tasks, transforms, losses and optimizers; what one entry in a
registry does.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from efficientnet_pytorch import EfficientNet
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torchvision.models import resnet50

import augmentation
import checkpoint
import config
import dataset
import model
import registries
import submit_ensemble
import submit_singular
import train
from data import faces, images, tables
from inference import submission
from labels import TASKS, Task, tasks_predicted_by
from runtime.errors import UserError
from runtime.options import build_parser
from tests.helpers import support
from training import fold as training_fold
from training import run as training_run
from utils import seeded

AXES = {
    "--model-type": list(registries.MODELS),
    "--task": list(TASKS),
    "--transform-type": list(registries.TRANSFORMS),
    "--loss-type": list(registries.LOSSES),
    "--optim-type": list(registries.OPTIMIZERS),
}
FEW = support.PEOPLE[:5]
OWN_MODELS = (  # that the contract describes; what is registered besides may be otherwise
    "VanillaEfficientNet",
    "VanillaResNet",
    "MultiClassTHANet_MK1",
    "MultiLabelTHANet",
    "THANet_MK1",
    "Factorised",
)


@pytest.fixture(scope="module")
def small_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return support.make_train(tmp_path_factory.mktemp("few") / "train", FEW, junk=False)


@pytest.fixture(scope="module")
def small_eval(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return support.make_eval(tmp_path_factory.mktemp("few") / "eval", 3)


def words(combination: tuple[str, ...]) -> list[str]:
    return [word for pair in zip(AXES, combination, strict=True) for word in pair]


def has_head(network: str, task: str) -> bool:
    """A model with heads of its own knows the competition's four tasks, and what `main` tells;
    Factorised also years.
    """
    heads = registries.MODELS[network].heads
    return not heads or bool(TASKS[task].from_main) or ("year" in heads and task == "age")


def is_regression(network: str, task: str) -> bool:
    """Whether the loss is one of values: Factorised learns years as a distribution."""
    return TASKS[task].regression and not registries.MODELS[network].heads


def is_allowed(combination: tuple[str, ...]) -> bool:
    network, task, _, loss, _ = combination
    of_values = loss in ("mseloss", "smoothl1loss")
    return is_regression(network, task) == of_values and has_head(network, task)


def test_every_combination_is_allowed_or_refused_by_name() -> None:
    counts = {True: 0, False: 0}
    for combination in itertools.product(*AXES.values()):
        asked = config.TrainSettings.parse(words(combination), "train.py", "")
        counts[is_allowed(combination)] += 1
        if is_allowed(combination):
            asked.completed()
            continue
        with pytest.raises(UserError) as caught:
            asked.completed()
        network, task, _, loss, _ = combination
        if not has_head(network, task):
            assert str(
                caught.value
            ) == f"--task {task}: {network} has no head for it; use --model-type " + " or ".join(
                name for name in registries.MODELS if has_head(name, task)
            )
        else:
            assert str(caught.value).startswith(
                f"--loss-type {loss}: does not fit --task {task} of {network}; use "
            )
    # losses for `age` by the two models of one head
    of_values = sum(loss.regression for loss in registries.LOSSES.values())
    alike = len(registries.TRANSFORMS) * len(registries.OPTIMIZERS)
    own = [network for network in registries.MODELS if network in OWN_MODELS]
    assert {
        task: sum(has_head(network, task) for network in own)
        for task in ("main", "mask", "ageg", "age", "gender")
    } == {"main": 6, "mask": 6, "ageg": 6, "age": 3, "gender": 6}
    allowed = alike * sum(
        of_values if is_regression(network, task) else len(registries.LOSSES) - of_values
        for network, task in itertools.product(registries.MODELS, TASKS)
        if has_head(network, task)
    )
    assert counts == {
        True: allowed,
        False: alike * len(registries.MODELS) * len(TASKS) * len(registries.LOSSES) - allowed,
    }


def covering() -> list[tuple[str, ...]]:
    """A small set of allowed combinations that holds every pair of values that some allowed
    combination holds.
    """
    allowed = [c for c in itertools.product(*AXES.values()) if is_allowed(c)]

    def pairs(c: tuple[str, ...]) -> set[tuple[int, str, int, str]]:
        return {(a, c[a], b, c[b]) for a, b in itertools.combinations(range(len(c)), 2)}

    missing = set().union(*map(pairs, allowed))
    chosen = []
    while missing:
        best = max(allowed, key=lambda c: len(pairs(c) & missing))
        chosen.append(best)
        missing -= pairs(best)
    return chosen


@pytest.mark.parametrize("combination", covering(), ids="-".join)
def test_a_pairwise_covering_set_trains_a_step_and_predicts(
    combination: tuple[str, ...],
    small_root: Path,
    small_eval: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fast = [*support.FAST, "--epochs", "1", "--batch-size", "35"]
    if combination[0] == "VanillaResNet":
        fast += ["--backbone", "tiny-resnet"]
    assert (
        train.main(
            [
                "--train-root",
                str(small_root),
                "--save-path",
                str(tmp_path),
                *fast,
                *words(combination),
            ]
        )
        == 0
    )
    line = next(
        line for line in capsys.readouterr().out.splitlines() if line.startswith("fold 0  epoch")
    )
    network, task, *_ = combination
    for head in registries.trained_heads(network, task):
        for predicted in tasks_predicted_by(head):
            assert TASKS[predicted].regression or predicted == task or f"{predicted} F1 " in line
    predict = [
        "--root",
        str(tmp_path),
        "--data-root",
        str(small_eval),
        "--save-path",
        str(tmp_path / "p"),
        "--task",
        task,
    ]
    assert (
        submit_ensemble.main(
            [*predict, "--transform-type", "auto", "--workers", "0", "--device", "cpu"]
        )
        == 0
    )
    (made,) = (tmp_path / "p").iterdir()
    array = submission.load_probabilities(made).array
    assert array.shape == (1, 1, 3, TASKS[task].outputs)
    assert np.isfinite(array).all()


@pytest.mark.parametrize(
    "network", ["MultiClassTHANet_MK1", "MultiLabelTHANet", "THANet_MK1", "Factorised"]
)
def test_a_multi_head_checkpoint_answers_main_and_its_parts_in_both_scripts(
    network: str,
    small_root: Path,
    small_eval: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = [
        "--train-root",
        str(small_root),
        "--model-type",
        network.lower(),
        "--task",
        "mask",
        "--epochs",
        "1",
    ]
    assert train.main([*asked, *support.FAST]) == 0
    (path,) = Path("saved_models").glob("*/fold00/*.pth")
    assert f"{network}_task(mask)" in path.name
    for task in ("main", "mask", "ageg", "gender"):
        common = ["--task", task, "--data-root", str(small_eval), "--workers", "0"]
        assert submit_singular.main([*common, "--model-type", network]) == 0
        assert submit_ensemble.main(common) == 0
    age = ["--task", "age", "--data-root", str(small_eval), "--workers", "0"]
    if network == "Factorised":
        assert submit_ensemble.main(age) == 0
        return
    with pytest.raises(UserError, match="--task age: no checkpoint .* answers age"):
        submit_ensemble.main(age)
    (run,) = Path("saved_models").iterdir()
    with pytest.raises(UserError, match=f"--task age: .*{network}.* was trained for mask; use "):
        submit_ensemble.main([*age, "--root", str(run)])


# --- one entry each


class Wide(nn.Module):
    trunk = "backbone"

    def __init__(self, backbone: nn.Module, heads: dict[str, int]) -> None:
        super().__init__()
        ((self.task, outputs),) = heads.items()
        self.backbone = backbone
        self.linear = nn.Linear(1000, outputs)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {self.task: self.linear(self.backbone(images).relu())}


class OneHot(nn.Module):
    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return (
            (outputs.log_softmax(1).exp() - nn.functional.one_hot(labels, outputs.shape[1]))
            .square()
            .mean()
        )


def upside_down(size: int) -> augmentation.Forms:
    def form(photo: Image.Image, box: faces.Box | None) -> Image.Image:
        return photo.resize((size, size)).rotate(180)

    return augmentation.Forms(form, form, form)


def slow(groups: list[dict[str, object]], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(groups, lr=lr, weight_decay=weight_decay)


def test_one_entry_adds_a_model_loss_transform_optimizer_and_task(
    small_root: Path,
    small_eval: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    here = __name__
    monkeypatch.setitem(
        registries.MODELS, "Wide", registries.Model(f"{here}:Wide", "tiny", alias="W")
    )
    monkeypatch.setitem(registries.LOSSES, "onehotloss", registries.Loss(f"{here}:OneHot"))
    monkeypatch.setitem(
        registries.TRANSFORMS,
        "upsidedown",
        registries.Transform(f"{here}:upside_down", "all of it", False),
    )
    monkeypatch.setitem(
        registries.OPTIMIZERS, "slow", registries.Optimizer(f"{here}:slow", 0.002, 0.003, 0.0)
    )
    over = Task(lambda mask, gender, years: int(years >= 40), ("young", "older"))
    monkeypatch.setitem(TASKS, "over40", over)
    for settings_class in (config.TrainSettings, config.SingularSettings, config.EnsembleSettings):
        text = build_parser(settings_class, "x", "").format_help()
        assert "over40" in text
        assert "upsidedown" in text
    text = build_parser(config.TrainSettings, "x", "").format_help()
    assert all(name in text for name in ("Wide", "onehotloss", "slow"))
    asked = [
        "--model-type",
        "w",
        "--loss-type",
        "ONEHOTLOSS",
        "--transform-type",
        "upsidedown",
        "--optim-type",
        "slow",
    ]
    asked += ["--task", "OVER40", "--epochs", "1"]
    fast = ["--image-size", "32", "--workers", "0", "--threads", "1", "--device", "cpu"]
    assert (
        train.main(["--train-root", str(small_root), "--save-path", str(tmp_path), *asked, *fast])
        == 0
    )
    assert "learning rate 0.002 (the default of slow" in capsys.readouterr().out
    predict = [
        "--root",
        str(tmp_path),
        "--data-root",
        str(small_eval),
        "--save-path",
        str(tmp_path / "p"),
        "--task",
        "over40",
    ]
    assert submit_ensemble.main([*predict, "--transform-type", "auto", "--workers", "0"]) == 0
    (made,) = (tmp_path / "p").iterdir()
    assert {row[1] for row in support.read_rows(made / "arithmetic.csv")[1:]} <= {"0", "1"}
    for name in ("THANet", "MultiLabelTHANet"):
        with pytest.raises(
            UserError,
            match="--task over40: .* has no head for it; use --model-type VanillaEfficientNet or",
        ):
            train.main(["--task", "over40", "--model-type", name])


# --- THANets


def test_attention_is_multi_head_attention_with_the_heads_joined_rightly() -> None:
    torch.manual_seed(0)
    ours = model.Attention()
    theirs = nn.MultiheadAttention(64, 8, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.project.weight)
        assert theirs.in_proj_bias is not None
        theirs.in_proj_bias.copy_(ours.project.bias)
        theirs.out_proj.weight.copy_(ours.join.weight)
        theirs.out_proj.bias.copy_(ours.join.bias)
    states = torch.randn(5, 3, 64)
    assert torch.allclose(ours(states), states + theirs(states, states, states)[0], atol=1e-5)


def test_the_thanets_are_built_as_the_contract_says() -> None:
    flat = model.build("THANet_MK1", "main", "tiny", 32)
    assert [n for n, _ in flat.named_children()] == [
        "backbone",
        "linear_mask",
        "linear_ageg",
        "linear_gender",
        "linear_main",
    ]
    outputs = flat.eval()(torch.randn(2, 3, 32, 32))
    assert {t: o.shape[1] for t, o in outputs.items()} == {
        "mask": 3,
        "ageg": 3,
        "gender": 2,
        "main": 18,
    }
    factors = model.build("Factorised", "main", "tiny", 32).eval()
    assert set(dict(factors.named_children())) == {
        "backbone",
        "batchnorm",
        "dropout",
        "relu",
        "heads",
    }
    assert {
        name: tuple(told.shape) for name, told in factors(torch.randn(2, 3, 32, 32)).items()
    } == {"mask": (2, 3), "gender": (2, 2), "year": (2, 100)}
    joined = model.build("MultiClassTHANet_MK1", "main", "tiny", 32).eval()
    outputs = joined(torch.randn(2, 3, 32, 32))
    parts = torch.cat([outputs[p] for p in ("mask", "ageg", "gender")], 1)
    assert joined.get_submodule("linear").weight.shape == (18, 8)
    assert torch.allclose(outputs["main"], joined.get_submodule("linear")(parts.relu()))
    assert set(
        model.build("MultiLabelTHANet", "main", "tiny", 32).eval()(torch.randn(2, 3, 32, 32))
    ) == {"mask", "ageg", "gender"}


def test_dropout_works_in_training_only() -> None:
    images = torch.randn(4, 3, 32, 32)
    for name in OWN_MODELS:
        network = model.build(name, "main", "tiny", 32)
        network.train()
        assert not torch.equal(*(next(iter(network(images).values())) for _ in range(2)))
        network.eval()
        assert torch.equal(*(next(iter(network(images).values())) for _ in range(2)))


# --- older checkpoints


def reference(name: str) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """A model built plainly from the public libraries: its bare state dict by the old names,
    images, its main logits.

    Its BatchNorm has statistics of real activations: with those of a new network the signal dies
    out on its way, and the logits would hang neither on the images nor on the padding.
    """
    torch.manual_seed(3)
    backbone = resnet50() if name == "VanillaResNet" else EfficientNet.from_name("efficientnet-b3")
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        backbone.train()(torch.randn(4, 3, 224, 224))
    images = torch.randn(2, 3, 224, 224)
    if name == "THANet_MK1":
        heads = {
            h: nn.Linear(1000, k)
            for h, k in (("mask", 3), ("ageg", 3), ("gender", 2), ("main", 18))
        }
        state = {f"backbone.{k}": v for k, v in backbone.state_dict().items()}
        for head, linear in heads.items():
            state |= {f"linear_{head}.{k}": v for k, v in linear.state_dict().items()}
        with torch.no_grad():
            return state, images, heads["main"](backbone.eval()(images))
    trunk = {"VanillaEfficientNet": "efficientnet", "VanillaResNet": "resnet"}[name]
    norm, linear = nn.BatchNorm1d(1000), nn.Linear(1000, 18)
    nn.init.normal_(norm.running_mean), nn.init.uniform_(norm.running_var, 0.5, 2)  # type: ignore[arg-type]
    state = {f"{trunk}.{k}": v for k, v in backbone.state_dict().items()}
    for part, module in (("batchnorm", norm), ("linear", linear)):
        state |= {f"{part}.{k}": v for k, v in module.state_dict().items()}
    with torch.no_grad():
        whole = nn.Sequential(backbone, norm, nn.Dropout(0.5), nn.ReLU(), linear).eval()
        return state, images, whole(images)


@pytest.mark.parametrize("name", ["VanillaEfficientNet", "VanillaResNet", "THANet_MK1"])
def test_older_bare_checkpoints_load_rank_and_vote(
    name: str, small_eval: Path, tmp_path: Path
) -> None:
    state, images, expected = reference(name)
    assert not torch.allclose(expected[0], expected[1], atol=1e-2)
    folder = tmp_path / f"kfold-ensemble-{name}" / "fold00"
    folder.mkdir(parents=True)
    file = "Fold00_{}_task(main)ep({})f1({})bs(32)loss(0.0014)lr(0.001)trans(random)"
    file += "optim(adam)crit(labelsmoothingloss)seed(42).pth"
    torch.save(state, folder / file.format(name, 28, "0.8311"))
    torch.save(state, folder / file.format(name, 9, "0.8400"))
    ranked = checkpoint.load_ranked(folder)
    assert [found.info.epoch for found in ranked] == [9, 28]
    best = ranked[0]
    with torch.no_grad():
        assert torch.allclose(
            model.build_from_checkpoint(best).eval()(images)["main"], expected, atol=1e-4
        )
        other = dataclasses.replace(best.info, padding=224)
        other_padding = dataclasses.replace(best, known_info=other)
        padded = model.build_from_checkpoint(other_padding).eval()(images)["main"]
    assert torch.allclose(padded, expected, atol=1e-4) == (name == "VanillaResNet"), (
        "the library's default is b3's own 300"
    )
    words = [
        "--root",
        str(tmp_path),
        "--data-root",
        str(small_eval),
        "--save-path",
        str(tmp_path / "p"),
        "--top-k",
        "2",
    ]
    assert submit_ensemble.main([*words, "--workers", "0"]) == 0
    (made,) = (tmp_path / "p").iterdir()
    assert submission.load_probabilities(made).weights == [0.84, 0.8311]


# --- training on, and in stages


def test_training_on_for_another_task_keeps_the_backbone_and_names_the_new_layers(
    tree: Path, small_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = next((tree / "fold00").glob("*.pth"))
    common = [
        "--train-root",
        str(small_root),
        *support.FAST,
        "--epochs",
        "1",
        "--lr",
        "1e-12",
        "--load-state-dict",
        str(path),
    ]
    assert train.main([*common, "--save-path", str(tmp_path / "a"), "--task", "mask"]) == 0
    assert "these layers are new: batchnorm, linear" in capsys.readouterr().err
    (after,) = (tmp_path / "a").glob("*/fold00/*.pth")
    before, later = (
        checkpoint.load_checkpoint(path).weights,
        checkpoint.load_checkpoint(after).weights,
    )
    assert torch.allclose(
        before["efficientnet.fc.weight"], later["efficientnet.fc.weight"], atol=1e-6
    )
    assert later["linear.weight"].shape == (3, 1000)
    with pytest.raises(
        UserError,
        match=r"mismatches: [\w.]+: missing in the file, \w+ \[[\d, ]+\] in .*; .*; .*\); name its",
    ):
        train.main([*common, "--save-path", str(tmp_path / "b"), "--model-type", "THANet"])
    assert not (tmp_path / "b").exists()


def test_a_frozen_backbone_stays_as_it_is_with_its_statistics(
    small_root: Path, tmp_path: Path
) -> None:
    asked = [
        "--train-root",
        str(small_root),
        "--epochs",
        "3",
        "--freeze",
        "2",
        "--backbone",
        "resnet18",
        "--image-size",
        "32",
        "--model-type",
        "VanillaResNet",
        "--pretrained",
        "none",
        "--workers",
        "0",
    ]
    s = config.TrainSettings.parse(asked, "train.py", "").completed()
    context = training_run.prepare_run(s)
    start = {k: v.clone() for k, v in training_run.make_model(context, 0).state_dict().items()}
    assert train.main([*asked, "--save-path", str(tmp_path)]) == 0
    ends = {
        found.info.epoch: found.weights
        for found in checkpoint.load_ranked(next(tmp_path.glob("*/fold00")))
    }
    assert sorted(ends) == [1, 2, 3]
    for epoch, weights in ends.items():
        still = all(torch.equal(start[k], weights[k]) for k in weights if k.startswith("resnet."))
        assert still == (epoch <= 2)
        assert not torch.equal(start["linear.weight"], weights["linear.weight"])
    with pytest.raises(UserError, match="--freeze 3"):
        config.TrainSettings.parse(["--epochs", "3", "--freeze", "3"], "train.py", "").completed()


class FixedSize(support.Tiny):
    """Takes 64 pixels alone, as timm's vision transformers take their own size."""

    def forward(self, images: Tensor) -> Tensor:
        assert images.shape[-1] == 64, (
            f"Input height ({images.shape[-2]}) doesn't match model (64)."
        )
        return super().forward(images)


def create_model(name: str, pretrained: bool, num_classes: int) -> nn.Module:
    """Stands for timm's function of that name."""
    if name not in ("tiny", "fixed"):
        raise RuntimeError(f"Unknown model ({name})")
    return {"tiny": support.Tiny, "fixed": FixedSize}[name]()


def test_backbones_of_timm_where_it_is_there(
    small_root: Path, small_eval: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [
        "--train-root",
        str(small_root),
        "--save-path",
        str(tmp_path / "s"),
        "--pretrained",
        "none",
        "--image-size",
        "32",
        "--workers",
        "0",
        "--epochs",
        "1",
    ]
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="pip install timm, or use another backbone$"):
        train.main([*asked, "--backbone", "timm:tiny"])
    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model))
    with pytest.raises(
        UserError, match=r"timm:nonsense: cannot be used .*Unknown model \(nonsense\)"
    ):
        train.main([*asked, "--backbone", "timm:nonsense"])
    with pytest.raises(
        UserError,
        match=r"timm:fixed: cannot be used with --image-size 32 \(Input height \(32\) doesn't ",
    ):
        train.main([*asked, "--backbone", "timm:fixed"])
    assert not (tmp_path / "s").exists()
    for name in ("VanillaResNet", "MultiLabelTHANet"):
        saved = str(tmp_path / name)
        assert (
            train.main(
                [*asked, "--save-path", saved, "--backbone", "TIMM:tiny", "--model-type", name]
            )
            == 0
        )
        assert (
            submit_ensemble.main(
                [
                    "--root",
                    saved,
                    "--data-root",
                    str(small_eval),
                    "--save-path",
                    str(tmp_path / "p"),
                    "--workers",
                    "0",
                ]
            )
            == 0
        )


def test_a_small_network_of_timm_itself(small_root: Path, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    assert (
        train.main(
            [
                "--train-root",
                str(small_root),
                "--save-path",
                str(tmp_path),
                "--backbone",
                "timm:resnet10t",
                "--pretrained",
                "none",
                "--image-size",
                "32",
                "--workers",
                "0",
                "--epochs",
                "1",
            ]
        )
        == 0
    )


def test_stages_compose(small_root: Path, tmp_path: Path) -> None:
    words = [
        "--train-root",
        str(small_root),
        "--epochs",
        "3",
        "--freeze",
        "1",
        "--warmup-epochs",
        "2",
        "--backbone-lr-scale",
        "0.1",
        *support.FAST,
        "--batch-size",
        "64",
        "--save-path",
        str(tmp_path),
    ]
    assert train.main(words) == 0
    (fold,) = tmp_path.glob("*/fold00")
    header, *rows = support.read_rows(fold / "history.csv")
    assert [float(row[header.index("lr")]) for row in rows] == pytest.approx([0.0005, 0.001, 0.001])
    settings = config.TrainSettings.parse(words, "train.py", "").completed()
    context = training_run.prepare_run(settings)
    before = training_run.make_model(context, 0).state_dict()
    after = {found.info.epoch: found.weights for found in checkpoint.load_ranked(fold)}
    assert torch.equal(before["efficientnet.stem.weight"], after[1]["efficientnet.stem.weight"])
    backbone, head = (
        float((after[2][k] - after[1][k]).abs().max())
        for k in ("efficientnet.stem.weight", "linear.weight")
    )
    assert 0 < backbone < 0.3 * head  # Adam moves each by about its rate


# --- oversampling


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(0, 9))
def test_oversampling_brings_every_class_up_to_the_largest(classes: list[int], seed: int) -> None:
    labels = np.array(classes)
    rows = (np.arange(len(labels)) * 3).tolist()
    more = dataset.oversample_rows(rows, labels, seed)
    assert more[: len(rows)] == rows
    assert set(more) == set(rows)
    counts = np.bincount([labels[r // 3] for r in more])
    assert set(counts[counts > 0]) == {np.bincount(labels).max()}
    repeats = np.bincount(more)[rows]
    for c in set(classes):
        own = repeats[labels == c]
        assert own.max() - own.min() <= 1


def context_of(root: Path, *asked: str) -> training_run.RunContext:
    s = config.TrainSettings.parse(
        ["--train-root", str(root), *support.FAST, *asked], "train.py", ""
    ).completed()
    return training_run.prepare_run(s)


def test_mixup_blends_two_people_of_one_class_and_nobody_held_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    people = [(f"{n:06d}", ("male", "female")[n % 2], 20 + n // 2) for n in range(10)]
    people += [("100001", "male", 60)]
    context = context_of(
        support.make_train(tmp_path / "train", people), "--oversample", "mixup", "--cv", "3"
    )
    table = context.table
    lone = table.loc[table["age"] == 60, "fold"].iloc[0]
    number = next(f for f in range(3) if f != lone)
    fold = training_fold.FoldTrainer(context, number)
    assert "photographs an epoch" in capsys.readouterr().out
    person, label = table["person"].to_numpy(), table["main"].to_numpy()
    counts = np.bincount(label[fold.batches.indices])
    assert len(set(counts[counts > 0])) == 1
    blended = 0
    for key in itertools.chain.from_iterable(fold.batches):
        (i, j), _ = fold.train_set[key]
        i, j = int(i), int(j)
        assert label[i] == label[j]
        assert not {i, j} & set(fold.valid_rows.tolist())
        if key[2] and table["age"][i] != 60:
            assert person[i] != person[j]
            blended += 1
        else:
            assert i == j
    assert blended > 0
    copied = next(
        key
        for key in itertools.chain.from_iterable(fold.batches)
        if key[2] and table["age"][key[1]] != 60
    )
    assert torch.equal(fold.train_set[copied][1][0], fold.train_set[copied][1][0])


def test_a_class_of_one_person_is_repeated_with_one_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    people = [(f"{n:06d}", "male", 20 + n) for n in range(4)] + [("100001", "male", 60)]
    table = tables.read_train(support.make_train(tmp_path / "train", people))
    rows = list(range(len(table)))
    found = dataset.find_mixup_partners(table, rows, ("main",), ("x",))
    err = capsys.readouterr().err
    assert err.count("warning") == 1
    assert "repeated instead: 3" in err
    assert all((len(found.partners[r]) == 0) == (table["age"][r] == 60) for r in rows)


def test_repeated_photographs_are_augmented_anew(small_root: Path) -> None:
    context = context_of(small_root, "--oversample", "repeat")
    fold = training_fold.FoldTrainer(context, 0)
    key = next(k for k in itertools.chain.from_iterable(fold.batches) if k[2])
    first = fold.train_set[(key[0], key[1], 0)][1][0]
    assert not torch.equal(first, fold.train_set[key][1][0])


def test_the_years_loss_reckons_with_the_shares_that_it_trains_on(tmp_path: Path) -> None:
    people = [
        (f"{n:06d}", "male", age) for n, age in enumerate((20, 20, 58, 40, 40, 40, 20, 20, 58, 20))
    ]
    root = support.make_train(tmp_path / "train", people)
    for asked, oldest in (([], 58), (["--age-filter", "58"], 60)):
        fold = training_fold.FoldTrainer(
            context_of(root, "--model-type", "Factorised", "--cv", "10", *asked), 0
        )
        assert set(fold.config.criteria) == {"mask", "gender", "year"}
        shares = fold.config.criteria["year"].get_buffer("log_shares").exp()
        assert shares.argmax() == 20
        assert shares[50:].argmax() == oldest - 50
        ages = fold.config.labels["year"].numpy()[np.setdiff1d(np.arange(70), fold.valid_rows)]
        assert float(shares[18:23].sum() / shares[oldest - 2 : oldest + 3].sum()) == pytest.approx(
            np.isin(ages, 20).sum() / np.isin(ages, oldest).sum(), rel=0.05
        )


@pytest.mark.parametrize("how", ["repeat", "mixup"])
@pytest.mark.parametrize("task", ["main", "age"])
def test_oversampled_runs_do_not_hang_on_workers(
    how: str, task: str, small_root: Path, tmp_path: Path
) -> None:
    found = []
    for workers in ("0", "1"):
        asked = [
            "--train-root",
            str(small_root),
            "--save-path",
            str(tmp_path / workers),
            *support.FAST,
            "--epochs",
            "1",
        ]
        assert train.main([*asked, "--oversample", how, "--task", task, "--workers", workers]) == 0
        (path,) = (tmp_path / workers).glob("*/*/*.pth")
        found.append(checkpoint.load_checkpoint(path).weights)
    assert all(torch.equal(found[0][k], found[1][k]) for k in found[0])


# --- face crop


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 999), st.integers(1, 12))
def test_the_face_finder_never_gives_an_absurd_box(
    width: int, height: int, seed: int, coarse: int
) -> None:
    draw = np.random.default_rng(seed).integers(
        0, 256, (max(1, height // coarse), max(1, width // coarse), 3), dtype=np.uint8
    )
    photo = Image.fromarray(draw).resize((width, height))
    box = faces.find_face(photo)
    assert box == faces.find_face(photo)
    if box is not None:
        left, top, right, bottom = box
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        assert max(right - left, bottom - top) >= 0.15 * min(width, height)
    for given_box in (box, (5, 5, 5, 9), (-50, -50, -10, -10), (0, 0, 10**6, 10**6)):
        x0, y0, x1, y1 = augmentation.face_square(photo, given_box)
        assert x0 >= 0
        assert y0 >= 0
        assert x1 <= width + 1e-9
        assert y1 <= height + 1e-9
        assert x1 - x0 == pytest.approx(y1 - y0)
        assert x1 - x0 >= min(1, width, height)


def test_the_face_of_a_portrait_is_found() -> None:
    photo = Image.new("RGB", (384, 512), (90, 120, 150))
    photo.paste((60, 60, 70), (90, 390, 330, 512))  # shoulders
    face = Image.new("L", (150, 190), 0)
    from PIL import ImageDraw

    ImageDraw.Draw(face).ellipse((0, 0, 149, 189), fill=255)
    photo.paste((205, 160, 130), (130, 170), face)
    found = faces.find_face(photo)
    assert found is not None
    left, top, right, bottom = found
    overlap = max(0, min(right, 280) - max(left, 130)) * max(0, min(bottom, 360) - max(top, 170))
    union = (right - left) * (bottom - top) + 150 * 190 - overlap
    assert overlap / union > 0.6
    made = augmentation.forms("facecrop", 64)
    view = augmentation.pixels(made.valid(photo, None))
    assert view.shape == (64, 64, 3)
    assert (augmentation.pixels(made.view(photo, None)) == view).all()
    assert view[32, 32].tolist() == [205, 160, 130]


def test_facerandom_stays_on_the_face_and_mirrors_half_of_the_time() -> None:
    photo = Image.new("RGB", (384, 512), (0, 200, 0))
    photo.paste((200, 0, 0), (130, 170, 205, 360))  # the left half of the face
    photo.paste((0, 0, 200), (205, 170, 280, 360))
    box, size = (130, 170, 280, 360), 32
    made = augmentation.forms("facerandom", size)
    assert (
        augmentation.pixels(made.valid(photo, box))
        == augmentation.pixels(augmentation.forms("facecrop", size).valid(photo, box))
    ).all()
    mirrored, seen = 0, set()
    for draw in range(60):
        with seeded("test", draw):
            view = augmentation.pixels(made.view(photo, box))
        red = view[size // 2, :, 0].astype(int) - view[size // 2, :, 2]
        mirrored += int(red.argmax() > red.argmin())
        seen.add(view.tobytes())
        with seeded("test", draw):
            assert augmentation.pixels(made.train(photo, box)).shape == (size, size, 3)
    assert 15 <= mirrored <= 45
    assert len(seen) > 10


def test_boxes_take_the_finders_place_in_training_and_at_test(
    small_root: Path, small_eval: Path, tmp_path: Path
) -> None:
    table = tables.read_train(small_root)
    boxes = tmp_path / "boxes.csv"
    names = [f"images/{n}" for n in tables.read_eval(str(small_eval))[0]]
    rows = [f"train/{f},10,20,110,140" for f in table["file"][1:]] + [
        f"eval/{n},0,0,384,512" for n in names
    ]
    boxes.write_text("\n".join(["file,left,top,right,bottom", *rows]))
    s = ["--transform-type", "facecrop", "--boxes", str(boxes), "--epochs", "1"]
    context = context_of(small_root, *s)
    assert len(context.boxes) == len(table) - 1
    photo = images.read_image(table["path"][1])
    fold = training_fold.FoldTrainer(context, 0)
    expected = augmentation.forms("facecrop", 32).valid(photo, (10, 20, 110, 140))
    assert torch.equal(
        fold.valid_set[(0, 1, 0)][1][0], torch.from_numpy(augmentation.pixels(expected))
    )
    assert (
        train.main(
            ["--train-root", str(small_root), "--save-path", str(tmp_path / "s"), *support.FAST, *s]
        )
        == 0
    )
    predict = [
        "--root",
        str(tmp_path / "s"),
        "--data-root",
        str(small_eval),
        "--workers",
        "0",
        "--transform-type",
        "auto",
    ]
    assert submit_ensemble.main([*predict, "--save-path", str(tmp_path / "p1")]) == 0
    assert (
        submit_ensemble.main([*predict, "--save-path", str(tmp_path / "p2"), "--boxes", str(boxes)])
        == 0
    )
    arrays = [
        submission.load_probabilities(next((tmp_path / p).iterdir())).array for p in ("p1", "p2")
    ]
    assert not np.array_equal(arrays[0], arrays[1])


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("{f},10,20,10,40", "row 3.*empty"),
        ("{f},x,20,30,40", "row 3.*pixels"),
        ("{g},1,1,9,9", "row 3.*row 2"),
        ("mask1.jpg,1,1,9,9", "row 3.*fits both"),
    ],
)
def test_bad_boxes_are_refused_by_row(
    row: str, told: str, small_root: Path, tmp_path: Path
) -> None:
    table = tables.read_train(small_root)
    boxes = tmp_path / "boxes.csv"
    text = row.format(f=table["file"][1], g=table["file"][0])
    boxes.write_text("\n".join(["file,left,top,right,bottom", f"{table['file'][0]},1,1,9,9", text]))
    with pytest.raises(UserError, match=told):
        tables.read_boxes(
            str(boxes), [*table["file"], "other"], [*table["path"], "/other/mask1.jpg"]
        )


def test_boxes_without_the_face_crop_are_refused() -> None:
    with pytest.raises(UserError, match="--boxes.*facecrop and facerandom"):
        config.TrainSettings.parse(["--boxes", "b.csv"], "train.py", "").completed()
