"""Losses, optimizers, the schedule, models and where their weights come from."""

from __future__ import annotations

import dataclasses
import functools
import math
import pickle
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional

import augmentation
import backbones
import checkpoint
import config
import dataset
import engine
import loss
import model
import optim
import registries
import train
from data import tables
from labels import TASKS, can_predict
from runtime import loading
from runtime.errors import RunError, UserError
from tests.helpers import support
from training import fold as training_fold
from training import fold_state


def test_label_smoothing_spreads_over_the_other_classes() -> None:
    logits, labels = torch.randn(5, 18, dtype=torch.float64), torch.randint(0, 18, (5,))
    target = torch.full((5, 18), 0.2 / 17, dtype=torch.float64).scatter(1, labels[:, None], 0.8)
    expected = -(target * logits.log_softmax(1)).sum(1).mean()
    assert float(loss.make_loss("labelsmoothingloss")(logits, labels)) == pytest.approx(
        float(expected), abs=1e-12
    )


def test_focal_loss_weighs_each_sample_by_its_own_probability() -> None:
    logits, labels = torch.randn(7, 3, dtype=torch.float64), torch.randint(0, 3, (7,))
    p = logits.softmax(1)[torch.arange(7), labels]
    expected = (-((1 - p) ** 5) * p.log()).mean()
    assert float(loss.make_loss("focalloss")(logits, labels)) == pytest.approx(
        float(expected), abs=1e-12
    )


@pytest.mark.parametrize(("task", "odds"), [("main", 1), ("ageg", 1), ("age", 9)])
def test_years_are_learned_softly_for_groups_as_if_alike_frequent(task: str, odds: int) -> None:
    labels = torch.tensor([20] * 90 + [65] * 10)
    criterion = training_fold.make_criterion("labelsmoothingloss", "year", labels, task)
    # of a network that cannot tell the photographs apart
    outputs = torch.zeros(1, 100, requires_grad=True)
    optimizer = torch.optim.LBFGS([outputs], max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        mean: torch.Tensor = criterion(outputs.expand(100, 100), labels)
        mean.backward()
        return mean

    optimizer.step(closure)
    years = outputs.detach().softmax(1)[0]
    # nine to one in the labels
    assert float(years[15:26].sum() / years[60:71].sum()) == pytest.approx(odds, rel=0.1)
    near, far = (
        criterion(
            torch.full((1, 100), -9.0).index_fill(1, torch.tensor([y]), 9.0), torch.tensor([40])
        )
        for y in (41, 50)
    )
    assert near < far
    groups = model.probabilities({"year": outputs.detach()}, "ageg")[0]
    assert torch.allclose(
        groups, torch.stack([years[:30].sum(), years[30:60].sum(), years[60:].sum()]), atol=1e-6
    )


def test_parts_and_years_answer_main_by_their_product() -> None:
    outputs = {"mask": torch.randn(4, 3), "gender": torch.randn(4, 2), "year": torch.randn(4, 100)}
    main = model.probabilities(outputs, "main")
    ages = outputs["year"].softmax(1)
    for c in range(18):
        group = ages[:, (0, 30, 60)[c % 3] : (30, 60, 100)[c % 3]].sum(1)
        expected = (
            outputs["mask"].softmax(1)[:, c // 6]
            * outputs["gender"].softmax(1)[:, c // 3 % 2]
            * group
        )
        assert torch.allclose(main[:, c], expected, atol=1e-6)
    assert can_predict(("mask", "gender", "year"), "main")
    assert can_predict(("mask", "gender", "year"), "ageg")
    assert not can_predict(("mask", "gender"), "main")


def test_age_is_the_mean_of_the_distribution_over_years() -> None:
    outputs = torch.full((2, 100), -torch.inf)
    outputs[0, 37] = 0
    outputs[1, [20, 60]] = torch.tensor([0.75, 0.25]).log()
    years = model.probabilities({"mask": torch.randn(2, 3), "year": outputs}, "age")
    assert torch.allclose(years, torch.tensor([[37.0], [30.0]]))
    assert years.dtype == torch.float32
    assert can_predict(("mask", "gender", "year"), "age")
    assert not can_predict(("mask", "gender", "ageg", "main"), "age")


@pytest.mark.parametrize("name", registries.LOSSES)
def test_the_loss_of_a_whole_validation_is_that_of_a_batch(name: str) -> None:
    criterion = loss.make_loss(name)
    if registries.LOSSES[name].regression:
        outputs, labels = torch.rand(6, 1) * 60, torch.rand(6) * 60
    else:
        outputs, labels = torch.randn(6, 18), torch.randint(0, 18, (6,))
    assert loss.loss_of_outputs(criterion, outputs, labels) == pytest.approx(
        float(criterion(outputs, labels)), rel=1e-5
    )


def test_a_regression_loss_pairs_outputs_with_their_own_labels() -> None:
    outputs, labels = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([1.0, 2.0, 5.0])
    assert float(loss.make_loss("mseloss")(outputs, labels)) == pytest.approx(4 / 3)
    assert float(loss.make_loss("smoothl1loss")(outputs, labels)) == pytest.approx(0.5)


def test_cosine_anneals_to_zero_over_the_run_and_restarts_by_cycle() -> None:
    whole = optim.schedule("cosine", 10, 4, 0, None)
    assert whole(0) == 1
    assert whole(20) == pytest.approx(0.5)
    assert whole(39) == pytest.approx((1 + math.cos(math.pi * 39 / 40)) / 2)
    assert whole(39) < 0.002
    cycles = optim.schedule("cosine", 10, 4, 0, 2)
    assert [cycles(s) for s in range(20)] == [cycles(s) for s in range(20, 40)]
    torch_own = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(
        torch.optim.SGD([nn.Parameter(torch.ones(1))], 1.0), 20
    )
    for step in range(40):
        assert cycles(step) == pytest.approx(torch_own.get_last_lr()[0], abs=1e-12)
        torch_own.optimizer.step()
        torch_own.step()
    warm = optim.schedule("cosine", 10, 4, 1, None)
    assert [warm(s) for s in range(10)] == pytest.approx([(s + 1) / 10 for s in range(10)])
    assert warm(10) == 1
    assert optim.schedule("none", 10, 4, 0, None)(39) == 1


@pytest.mark.parametrize("name", registries.OPTIMIZERS)
def test_every_optimizer_learns_channels_last_weights(name: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    )
    network = network.to(memory_format=torch.channels_last)
    entry = registries.OPTIMIZERS[name]
    groups = [
        {"params": list(network[:1].parameters()), "scale": 0.5},
        {"params": list(network[1:].parameters()), "scale": 1.0},
    ]
    optimizer = optim.make_optimizer(name, groups, entry.lr_scratch, entry.weight_decay)
    images, labels = torch.randn(16, 3, 8, 8), torch.arange(16) % 2
    images[labels == 1] += 1
    first = functional.cross_entropy(network(images), labels).item()
    optim.set_lr(optimizer, 0.05)
    assert [g["lr"] for g in optimizer.param_groups] == [0.025, 0.05]
    for _ in range(60):
        optimizer.zero_grad()
        functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    assert functional.cross_entropy(network(images), labels).item() < first - 0.05


@pytest.mark.parametrize("along", ["nothing", "channels", "the whole"])
def test_adamp_equals_the_packages_on_ordinary_weights(
    along: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adamp import AdamP

    plain, projected = AdamP._projection, list[bool]()

    def watched(*words: object) -> tuple[torch.Tensor, float]:
        step, decay = plain(*words)
        projected.append(decay != 1)
        return step, decay

    monkeypatch.setattr(AdamP, "_projection", watched)

    def turned(gradient: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The gradient without its part along the weights, by which the package decides whether to
        project.
        """
        rows = {"channels": len(weight), "the whole": 1}.get(along, 0)
        if not rows:
            return gradient + weight
        g, w = gradient.reshape(rows, -1), weight.reshape(rows, -1)
        return (g - w * (g * w).sum(1, keepdim=True) / (w * w).sum(1, keepdim=True)).reshape(
            gradient.shape
        )

    torch.manual_seed(0)
    start, bias, gradient = torch.randn(4, 3, 3, 3), torch.randn(4), torch.randn(5, 4, 3, 3, 3)
    ends = []
    for kind, layout in (
        (AdamP, torch.contiguous_format),
        (optim.AnyLayoutAdamP, torch.channels_last),
    ):
        weight, offset = (
            nn.Parameter(start.clone().to(memory_format=layout)),
            nn.Parameter(bias.clone()),
        )
        optimizer = kind([weight, offset], lr=0.01, betas=(0.9, 0.999), weight_decay=0.01)
        for g in gradient:
            weight.grad = turned(g, weight.detach()).to(memory_format=layout)
            offset.grad = g[:, 0, 0, 0].clone()
            optimizer.step()
        ends.append((weight.detach(), offset.detach()))
    for ours, theirs in zip(*ends, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)
    assert projected == [along != "nothing"] * len(gradient), (
        "the gradients must be such that the package projects, or does not"
    )


def test_precision_auto_takes_bf16_only_where_the_processor_has_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for able in (True, False):

        def has(including_emulation: bool = True, able: bool = able) -> bool:
            return including_emulation or able

        monkeypatch.setattr(torch.cuda, "is_bf16_supported", has)
        assert engine.choose_precision("auto", torch.device("cuda")) == ("bf16" if able else "fp16")


@pytest.mark.parametrize("rows", [[[0], [0]], [[0, 1], [2, 3]]])
def test_views_are_made_one_at_a_time_and_each_once(
    train_root: Path, rows: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    view = augmentation.View(augmentation.forms("tta", 32).view, ("view", "x", 0))
    views = [
        dataclasses.replace(view, key=("view", "x", n))
        for n in range(max(max(row) for row in rows) + 1)
    ]
    table = tables.read_train(str(train_root))
    photos = dataset.ImageDataset(table["file"].tolist()[:4], table["path"].tolist()[:4], views)
    plain, made = engine.to_network, list[int]()

    def counted(compute: engine.Compute, pixels: torch.Tensor) -> torch.Tensor:
        made.append(len(pixels))
        return plain(compute, pixels)

    monkeypatch.setattr(engine, "to_network", counted)
    compute = engine.Compute(torch.device("cpu"), "fp32", 0, 4)
    networks = [model.build("VanillaEfficientNet", "main", "tiny", 32) for _ in rows]
    array = engine.predict(networks, rows, photos, ["main"], compute)["main"]
    assert array.shape == (2, len(rows[0]), 4, 18)
    assert len(made) == len(views)
    assert [loading.prefetch_batches(n) for n in (1, 2, 4, 20)] == [4, 2, 1, 1]


def test_a_network_that_cannot_be_compiled_is_refused_in_a_line(
    train_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(graph: object, inputs: object) -> None:
        raise RuntimeError("no C++ compiler found")

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=failing))
    words = [
        "--train-root",
        str(train_root),
        "--save-path",
        str(tmp_path),
        "--epochs",
        "1",
        "--compile",
        *support.FAST,
    ]
    with pytest.raises(
        UserError,
        match=r"--compile: the network cannot be compiled here \(.*\); leave --compile out",
    ):
        train.main(words)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("compiled", [False, True])
def test_a_gpu_learns_what_the_cpu_does(train_root: Path, tmp_path: Path, compiled: bool) -> None:
    losses = []
    for device in ("cpu", "cuda"):
        words = [
            "--train-root",
            str(train_root),
            "--save-path",
            str(tmp_path / device),
            "--epochs",
            "2",
            *support.FAST,
            "--device",
            device,
            "--precision",
            "fp32",
            "--workers",
            "2",
        ]
        assert train.main([*words, "--compile"] if compiled and device == "cuda" else words) == 0
        (history,) = (tmp_path / device).glob("*/fold00/history.csv")
        losses.append(pd.read_csv(history)["train_loss"].to_numpy())
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.1)  # dropout draws others on a GPU


# --- models


@pytest.mark.parametrize(
    ("name", "backbone"),
    [("VanillaEfficientNet", "efficientnet-lite0"), ("VanillaResNet", "resnet18")],
)
@pytest.mark.parametrize("task", TASKS)
def test_vanilla_models_have_the_contracts_modules_and_outputs(
    name: str, backbone: str, task: str
) -> None:
    network = model.build(name, task, backbone, 64).eval()
    trunk = {"VanillaEfficientNet": "efficientnet", "VanillaResNet": "resnet"}[name]
    assert [n for n, _ in network.named_children()] == [
        trunk,
        "batchnorm",
        "dropout",
        "relu",
        "linear",
    ]
    assert isinstance(network.dropout, nn.Dropout)
    assert network.dropout.p == 0.5
    outputs = network(torch.randn(2, 3, 64, 64))
    assert {t: tuple(o.shape) for t, o in outputs.items()} == {
        task: (
            2,
            {"main": 18, "mask": 3, "gender": 2, "ageg": 3, "age": 1}.get(
                task, TASKS[task].outputs
            ),
        )
    }


def test_batchnorm_learns_its_statistics_in_a_short_run() -> None:
    network = model.build("VanillaEfficientNet", "main", "efficientnet-b0", 64)
    assert {m.momentum for m in network.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}


def test_lite0_has_its_real_weights_and_keeps_its_padding() -> None:
    weights = backbones.backbone_weights("efficientnet-lite0", "imagenet")
    assert weights is not None
    network = backbones.efficientnet_lite0("efficientnet-lite0", 96)
    model.load_weights(network, weights, "lite0")
    image = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    assert network.eval()(image).std() > 0.1
    assert not any(isinstance(m, nn.SiLU) for m in network.modules())


def test_published_weights_come_from_the_cache_safely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    state = backbones.resnet("resnet18", None).state_dict()
    torch.save(state, cache / "resnet18-f37072fd.pth")
    found = backbones.backbone_weights("resnet18", "imagenet")
    assert found is not None
    assert torch.equal(found["conv1.weight"], state["conv1.weight"])
    assert "not the published file" in capsys.readouterr().err


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("the pickle ran",))


@pytest.mark.parametrize("legacy", [True, False])
def test_a_pickle_that_runs_code_is_refused_also_in_the_cache(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    legacy: bool,
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    path = cache / "resnet18-f37072fd.pth"
    if legacy:
        path.write_bytes(pickle.dumps(Evil()))
    else:
        torch.save({"conv1.weight": Evil()}, path)
    with pytest.raises(UserError, match="cannot be read safely"):
        backbones.backbone_weights("resnet18", "imagenet")
    assert "the pickle ran" not in capsys.readouterr().out


def test_a_failed_download_stops_with_the_ways_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(UserError) as caught:
        backbones.backbone_weights("efficientnet-b3", "imagenet")
    for way in (
        "no route to host",
        "--pretrained none",
        "--pretrained PATH",
        "--backbone efficientnet-lite0",
        str(tmp_path),
    ):
        assert way in str(caught.value)
    with pytest.raises(
        UserError, match="--model-type VanillaEfficientNet --backbone efficientnet-lite0 after"
    ):
        backbones.backbone_weights("resnet50", "imagenet")


def test_weights_of_another_network_are_refused_by_three_names(tmp_path: Path) -> None:
    path = tmp_path / "resnet34.pth"
    torch.save(backbones.resnet("resnet34", None).state_dict(), path)
    weights = backbones.backbone_weights("resnet18", str(path))
    assert weights is not None
    with pytest.raises(UserError, match="mismatches: .*;.*;.*--backbone"):
        model.load_weights(backbones.resnet("resnet18", None), weights, str(path))


def test_main_answers_the_parts_and_the_parts_answer_main() -> None:
    logits = torch.randn(4, 18)
    main = logits.softmax(1)
    gender = model.probabilities({"main": logits}, "gender")
    assert torch.allclose(gender[:, 1], main[:, [c for c in range(18) if c // 3 % 2]].sum(1))
    parts = {"mask": torch.randn(4, 3), "gender": torch.randn(4, 2), "ageg": torch.randn(4, 3)}
    product = model.probabilities(parts, "main")
    assert torch.allclose(product.sum(1), torch.ones(4))
    p = {t: o.softmax(1) for t, o in parts.items()}
    assert torch.allclose(
        product[:, 6 * 2 + 3 * 1 + 0], p["mask"][:, 2] * p["gender"][:, 1] * p["ageg"][:, 0]
    )
    assert can_predict(("main",), "ageg")
    assert not can_predict(("main",), "age")
    assert not can_predict(("mask",), "main")


# --- checkpoints

INFO = checkpoint.CheckpointInfo(
    "VanillaEfficientNet", "main", "random", "tiny", 32, 32, 0, 28, 0.83114, 0.0014, {}, ["p"]
)


def named(settings: config.TrainSettings) -> config.OptimSettings:
    return settings.part(config.OptimSettings)


def test_the_name_is_the_contracts() -> None:
    settings = config.TrainSettings.parse([], "train.py", "").completed()
    assert checkpoint.file_name(INFO, named(settings)) == (
        "Fold00_VanillaEfficientNet_task(main)ep(28)f1(0.8311)bs(32)loss(0.0014)lr(0.001)trans(random)optim(adam)"
        "crit(labelsmoothingloss)seed(42).pth"
    )


def test_a_name_tells_what_was_written_into_it() -> None:
    settings = config.TrainSettings.parse(
        ["--lr", "1e-05", "--optim-type", "adamp"], "train.py", ""
    ).completed()
    read = checkpoint.info_from_name(checkpoint.file_name(INFO, named(settings)))
    assert read is not None
    assert (read.model, read.task, read.epoch, read.macro_f1, read.transform) == (
        INFO.model,
        "main",
        28,
        0.8311,
        "random",
    )
    assert (read.backbone, read.image_size, read.padding) == ("efficientnet-b3", 224, None)


def test_contents_are_plain_and_come_back(tmp_path: Path) -> None:
    weights = {"a": torch.randn(3), "n": torch.tensor(4)}
    checkpoint.save_checkpoint(tmp_path / "x.pth", weights, INFO)
    found = checkpoint.load_checkpoint(tmp_path / "x.pth")
    assert found.info == INFO
    assert torch.equal(found.weights["a"], weights["a"])
    torch.load(tmp_path / "x.pth", weights_only=True)
    assert [p.name for p in tmp_path.iterdir()] == ["x.pth"]


def name_of(epoch: int) -> str:
    settings = config.TrainSettings().completed()
    return checkpoint.file_name(dataclasses.replace(INFO, epoch=epoch), named(settings))


@pytest.mark.parametrize(
    "scores", [[0.1, 0.5, 0.3, 0.5, 0.2], [0.9, 0.1, 0.1, 0.1], [0.3, 0.3, 0.3]]
)
def test_the_best_n_stay_the_earlier_on_a_tie(tmp_path: Path, scores: list[float]) -> None:
    kept: list[checkpoint.KeptCheckpoint] = []
    for epoch, f1 in enumerate(scores, start=1):
        new = checkpoint.KeptCheckpoint(name_of(epoch), epoch, f1)
        checkpoint.save_if_best(tmp_path, kept, new, {"w": torch.ones(1)}, INFO, 2)
        assert all((tmp_path / k.file).is_file() for k in kept)
        checkpoint.delete_displaced(tmp_path, kept)
    best = sorted(range(len(scores)), key=lambda e: (-scores[e], e))[:2]
    assert [k.epoch for k in kept] == [e + 1 for e in best]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(name_of(e + 1) for e in best)


def test_a_failed_write_leaves_no_file_and_displaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[checkpoint.KeptCheckpoint] = []
    checkpoint.save_if_best(
        tmp_path, kept, checkpoint.KeptCheckpoint("a.pth", 1, 0.5), {"w": torch.ones(1)}, INFO, 1
    )

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        RunError, match=r"b\.pth: cannot be written \(No space left on device\); make room"
    ):
        checkpoint.save_if_best(
            tmp_path,
            kept,
            checkpoint.KeptCheckpoint("b.pth", 2, 0.9),
            {"w": torch.ones(1)},
            INFO,
            1,
        )
    assert [p.name for p in tmp_path.iterdir()] == ["a.pth"]
    assert [k.file for k in kept] == ["a.pth"]


@pytest.mark.parametrize(
    "damage", ["truncated", "text", "list", "no-weights", "lying", "unknown-model"]
)
def test_damaged_checkpoints_are_refused_by_name(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "x.pth"
    checkpoint.save_checkpoint(path, {"w": torch.randn(100)}, INFO)
    plain = torch.load(path, weights_only=True)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:300])
    elif damage == "text":
        path.write_text("weights")
    elif damage == "list":
        torch.save([1], path)
    elif damage == "no-weights":
        torch.save({**plain, "state_dict": {"w": 3}}, path)
    elif damage == "lying":
        torch.save({**plain, "info": {**plain["info"], "image_size": "224"}}, path)
    else:
        torch.save({**plain, "info": {**plain["info"], "model": "Nobody"}}, path)
    with pytest.raises(UserError, match=r"x\.pth"):
        checkpoint.load_checkpoint(path)


def test_every_epochs_validation_comes_back(tmp_path: Path) -> None:
    state = fold_state.FoldState(
        0, probabilities={"mask": [np.full((2, 3), e / 10, np.float32) for e in range(3)]}
    )
    state.history = [{"epoch": 1.0, "valid_loss": 0.5}]
    fold_state.save_validation(tmp_path, state, ["a", "b"])
    stored = fold_state.load_validation(tmp_path, "mask")
    assert stored is not None
    assert stored[0] == ["a", "b"]
    assert stored[1].shape == (3, 2, 3)
    (tmp_path / fold_state.VALIDATION_FILE).write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(UserError, match="damaged"):
        fold_state.load_validation(tmp_path, "mask")
