"""The parts of the product that are timed: set up here, in one place, as its scripts do."""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import augmentation
import config
import dataset
import engine
import loss
import model
import registries
from benchmarks import harness
from runtime import loading
from training import fold as training_fold
from training import run as training_run

FOLDS = 5


def choose_compute(args: argparse.Namespace, batch_size: int) -> engine.Compute:
    """Device, precision, threads and workers, by add_machine_options' arguments."""
    names = ("device", "precision", "workers", "threads")
    machine = config.MachineSettings(**{name: getattr(args, name) for name in names})
    return engine.make_compute(machine, batch_size, training_run.SINGLE_PROCESS, shared=False)


def make_network(backbone: str, image_size: int, compute: engine.Compute) -> nn.Module:
    """The network that train.py trains, on the device; random weights."""
    network = model.build("VanillaEfficientNet", "main", backbone, image_size)
    return model.to_device(network, compute.device)


def make_trainer(args: argparse.Namespace, **options: Any) -> training_fold.FoldTrainer:
    """The trainer of fold 0 as train.py makes it, with random weights; options: of
    TrainSettings.
    """
    settings = config.TrainSettings(
        train_root=args.root,
        pretrained="none",
        cv=FOLDS,
        device=args.device,
        precision=args.precision,
        workers=args.workers,
        threads=args.threads,
        **options,
    )
    return training_fold.FoldTrainer(training_run.prepare_run(settings.completed()), 0)


class TimedLoader:
    """A loader that counts the seconds of waiting for its batches, and for each epoch's first."""

    def __init__(self, loader: Any) -> None:
        self.loader, self.batch_sampler = loader, loader.batch_sampler
        self.seconds = self.first_seconds = 0.0

    def __iter__(self) -> Iterator[Any]:
        start = begin = time.perf_counter()
        batches = iter(self.loader)
        while True:
            batch = next(batches, None)
            now = time.perf_counter()
            self.seconds += now - start
            if start == begin:
                self.first_seconds += now - start
            if batch is None:
                return
            yield batch
            start = time.perf_counter()


class Training:
    """A side: engine.train_one_epoch over photographs. A turn is an epoch; workers start in the
    first.

    `seconds` and `waiting_seconds` add up over the turns.
    """

    def __init__(
        self,
        trainer: training_fold.FoldTrainer,
        photos: dataset.ImageDataset,
        indices: Sequence[int],
        labels: Mapping[str, Tensor],
    ) -> None:
        self.trainer, compute = trainer, trainer.context.compute
        self.config = dataclasses.replace(trainer.config, labels=labels)
        size = compute.batch_size
        self.batches = dataset.EpochBatchSampler(indices, size, ("benchmark",), least=2)
        self.loader = TimedLoader(
            loading.make_loader(photos, self.batches, compute.workers, compute.device)
        )
        self.seconds = 0.0

    @property
    def waiting_seconds(self) -> float:
        """Of `seconds`, those without a batch."""
        return self.loader.seconds

    def reset(self) -> None:
        """Forget the turns so far."""
        self.seconds = self.loader.seconds = self.loader.first_seconds = 0.0

    def __call__(self) -> int:
        start, trainer = time.perf_counter(), self.trainer
        model.train_mode(trainer.network)
        running = engine.RunningLoss(self.config.compute.device)
        engine.train_one_epoch(
            trainer.compiled, trainer.optimizer, self.loader, self.config, running
        )
        self.batches.epoch += 1
        self.seconds += time.perf_counter() - start
        return len(self.batches.indices)


def own_training(trainer: training_fold.FoldTrainer, count: int) -> Training:
    """So many of the fold's own photographs, again and again where it has fewer."""
    indices = harness.cycle(trainer.batches.indices, count)
    return Training(trainer, trainer.train_set, indices, trainer.config.labels)


def bare_step(
    forward: nn.Module,
    optimizer: Optimizer,
    image_size: int,
    compute: engine.Compute,
    memory_format: torch.memory_format = torch.channels_last,
) -> Callable[[], None]:
    """One training step on a batch that lies on the device; forward: the network, or torch's
    wrapper of it.
    """
    criterion = loss.make_loss("labelsmoothingloss")
    images = torch.randn(compute.batch_size, 3, image_size, image_size, device=compute.device)
    images = images.to(memory_format=memory_format)
    labels = torch.arange(compute.batch_size, device=compute.device) % 18

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with compute.autocast():
            outputs = forward(images)["main"]
        criterion(outputs.float(), labels).backward()
        optimizer.step()

    return step


def repeat_step(step: Callable[[], object], count: int, compute: engine.Compute) -> harness.Side:
    """A side of so many steps, until the device has done them."""

    def side() -> int:
        for _ in range(count):
            step()
        synchronize(compute.device)
        return count * compute.batch_size

    return side


def repeated(
    trainer: training_fold.FoldTrainer, count: int
) -> tuple[dataset.ImageDataset, dict[str, Tensor]]:
    """`count` photographs, the same files again and again under other names, and their labels."""
    form = augmentation.forms("random", trainer.context.data.image_size).train
    view = augmentation.View(form, ("benchmark",))
    own = trainer.context.table["path"].tolist()
    paths = [own[k % len(own)] for k in range(count)]
    labels = {
        task: values.repeat(count // len(values) + 1)[:count]
        for task, values in trainer.config.labels.items()
    }
    return dataset.ImageDataset([str(k) for k in range(count)], paths, [view]), labels


def subset(photos: dataset.ImageDataset, indices: Sequence[int]) -> dataset.ImageDataset:
    """Some of the photographs."""
    names, paths = [photos.names[i] for i in indices], [photos.paths[i] for i in indices]
    return dataset.ImageDataset(names, paths, photos.views, photos.boxes)


def prediction(
    networks: Sequence[nn.Module],
    plan: Sequence[Sequence[int]],
    photos: dataset.ImageDataset,
    compute: engine.Compute,
    backend: str = "torch",
) -> harness.Side:
    """A side: engine.predict over photographs, in passes through a network; plan: see there."""
    convert = registries.import_target(registries.BACKENDS[backend])
    copies = [model.InferenceNetwork(network, convert) for network in networks]

    def side() -> int:
        members, views, images, _ = engine.predict(copies, plan, photos, ["main"], compute)[
            "main"
        ].shape
        return members * views * images

    return side


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
