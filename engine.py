"""Train one epoch; and ONE pass from photographs to outputs, for validation, test views and
submissions.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import augmentation
import config
import dataset
import loading
import metrics
import model
import optim
from labels import TASKS, head_spec
from runtime.cli import progress
from runtime.devices import choose_device, set_threads, usable_processors
from runtime.errors import DistInfo, UserError, plural, reason
from utils import derive_seed

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Compute:
    """Where and how the network runs."""

    device: torch.device
    precision: str  # fp32, bf16 or fp16
    workers: int
    batch_size: int
    rank: int = 0  # of the processes that share every batch
    world: int = 1

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """torch's mixed precision, where one is asked for."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=AUTOCAST_DTYPES[self.precision])

    def to_device(self, values: Tensor) -> Tensor:
        """A loader's tensor where the network runs. On a GPU the copy has a stream of its own: it
        runs beside the kernels of what was queued before (the last step), and only what is queued
        from here on waits for it.

        Elsewhere, and from memory that is not pinned, the copy is waited for: its values could be
        read before they are there.
        """
        stream = copy_stream(self.device)
        if stream is None:
            return values.to(self.device)
        with torch.cuda.stream(stream):
            moved = values.to(self.device, non_blocking=values.is_pinned())
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(stream)
        # or its memory could be the next copy's while kernels still read it
        moved.record_stream(computing)
        return moved

    def to_network(self, pixels: Tensor) -> Tensor:
        """uint8 [batch, height, width, 3] -> normalised float32 [batch, 3, height, width], channels
        last in memory.
        """
        images = self.to_device(pixels).permute(0, 3, 1, 2).float()
        mean, deviation = imagenet_statistics(self.device)
        return images.sub_(mean).div_(deviation)


@functools.cache
def copy_stream(device: torch.device) -> torch.cuda.Stream | None:
    """The stream of copies to a GPU; None for other devices."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None


@functools.cache  # making them anew for each batch would make the host wait for a GPU
@torch.inference_mode(False)
def imagenet_statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation [1, 3, 1, 1] of ImageNet's pixels, counted from 0 to 255."""
    mean, deviation = (
        torch.tensor(values, device=device).view(1, 3, 1, 1) * 255
        for values in (augmentation.IMAGENET_MEAN, augmentation.IMAGENET_STD)
    )
    return mean, deviation


def blend_labels(labels: Tensor, partners: Tensor) -> Tensor:
    """Labels of half-and-half blends: partners share the class; of values the mean."""
    return (labels + partners) / 2 if labels.is_floating_point() else labels


def choose_precision(asked: str, device: torch.device) -> str:
    """`auto`: bf16 on a GPU (torch's current one) whose processor has it, else fp16 there; fp32
    elsewhere.
    """
    if asked != "auto":
        return asked
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


@dataclass
class Learner:
    """What training changes: the weights, the optimizer's state, the scaler of half-precision
    gradients.

    forward: how training calls the model: itself, compiled, or wrapped to share gradients among
    processes.
    """

    model: nn.Module
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    forward: Callable[[Tensor], dict[str, Tensor]]

    def state(self) -> dict[str, dict[str, Any]]:
        """All of it as plain types and tensors."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, state: dict[str, dict[str, Any]], source: str) -> None:
        """Take up a kept state. Raises UserError for another network's, or for none at all."""
        model.load_weights(self.model, state["model"], source)
        model.check_finite(self.model, source)
        try:
            optim.load_optimizer_state(self.optimizer, state["optimizer"])
            if not all(
                type(value) in (int, float) and 0 <= value < math.inf
                for value in state["scaler"].values()
            ):
                raise ValueError("invalid gradient scaler state")
            self.scaler.load_state_dict(state["scaler"])
        except (
            ValueError,
            KeyError,
            RuntimeError,
            TypeError,
            AttributeError,
            IndexError,
            AssertionError,
        ) as error:
            raise UserError(
                f"{source}: holds another optimizer's state ({reason(error)}); remove its folder "
                "to train it "
                "again"
            ) from None


@dataclass(frozen=True)
class Recipe:
    """What an epoch of training follows."""

    heads: tuple[str, ...]  # tasks trained at once, by the sum of their losses
    criteria: Mapping[str, nn.Module]  # the loss of each head
    rate: Callable[[int], float]  # learning rate of each step of the whole run
    clip_grad: float | None
    seed: tuple[object, ...]  # what dropout's draws derive from, with the step and the process


def train_one_epoch(
    learner: Learner,
    recipe: Recipe,
    loader: Any,
    labels: dict[str, Tensor],
    task: str,
    compute: Compute,
    step: int,
    running: metrics.RunningLoss | None = None,
    after_step: Callable[[int], None] | None = None,
) -> tuple[metrics.RunningLoss, float]:
    """One pass over the loader's batches, from the run's step number `step` on; returns (counts,
    photographs a second).

    labels: {task: labels of every photograph}, on the device. running: the counts of an epoch that
    is taken up again.
    after_step: called with the number of the next step after each. Nothing here waits for the
    device.
    """
    model.train_mode(learner.model)
    running = running or metrics.RunningLoss(compute.device)
    total = torch.distributed.all_reduce if compute.world > 1 else None
    seen, start = 0, time.perf_counter()
    # or processes that share a batch would draw the same masks
    own = (compute.rank,) if compute.rank else ()
    for pairs, views in progress(loader, f"epoch {loader.batch_sampler.epoch + 1}"):
        # Dropout draws from the global generator: seeded by the step, an epoch can be taken up in
        # its middle.
        torch.manual_seed(derive_seed("step", *recipe.seed, step, *own))
        index, partner = compute.to_device(pairs).unbind(1)
        images = compute.to_network(views[0])
        # before the forward pass: CUDA graphs write over the old ones
        learner.optimizer.zero_grad(set_to_none=True)
        with compute.autocast():
            outputs = learner.forward(images)
        truth = {
            head: blend_labels(labels[head][index], labels[head][partner]) for head in recipe.heads
        }
        losses = [
            recipe.criteria[head](outputs[head].float(), truth[head]) for head in recipe.heads
        ]
        loss = torch.stack(losses).sum()
        optim.set_lr(learner.optimizer, recipe.rate(step))
        weight = loader.batch_sampler.weight(step)
        learner.scaler.scale(loss * weight).backward()
        if recipe.clip_grad is not None:
            learner.scaler.unscale_(learner.optimizer)
            nn.utils.clip_grad_norm_(learner.model.parameters(), recipe.clip_grad)
        learner.scaler.step(learner.optimizer)
        learner.scaler.update()
        judged = task in outputs and not TASKS[task].regression
        hits = (
            (outputs[task].detach().argmax(1) == truth[task]).sum() * (weight > 0)
            if judged
            else None
        )
        running.add(loss, index.shape[0] if weight else 0, step, hits, total)
        step += 1
        seen += index.shape[0]
        if after_step is not None:
            after_step(step)
    if compute.device.type == "cuda":
        torch.cuda.synchronize(compute.device)
    return running, seen * compute.world / (time.perf_counter() - start)


def make_eval_loader(
    photos: dataset.ImageDataset, indices: Sequence[int], compute: Compute
) -> loading.Loader:
    """The loader by which this process reads its part of the photographs in a `forward_batches`;
    `with` ends its workers.
    """
    batches = dataset.EpochBatchSampler(indices[compute.rank :: compute.world], compute.batch_size)
    return loading.make_loader(photos, batches, compute.workers, compute.device)


def forward_batches(
    networks: Sequence[nn.Module],
    plan: Sequence[Sequence[int]],
    reader: loading.Loader,
    compute: Compute,
    label: str,
) -> Iterator[tuple[int, int, slice, dict[str, Tensor]]]:
    """(member, pass, which of the reader's photographs, {head: outputs of these}), batch by batch.

    plan[m][v]: which of the photographs' views member m reads in its pass v. Every photograph is
    decoded once and all members see each batch.
    """
    for network in networks:
        network.eval()
    done = 0
    for pairs, views in progress(reader, label):
        part = slice(done, done + len(pairs))
        # one view at a time: every member may have views of its own
        images, converted = (Tensor(), -1)
        for m, (network, row) in enumerate(zip(networks, plan, strict=True)):
            for v, which in enumerate(row):
                if which != converted:
                    images, converted = compute.to_network(views[which]), which
                with compute.autocast():
                    outputs = network(images)
                yield m, v, part, outputs
        done = part.stop


@torch.inference_mode()
def predict(
    networks: Sequence[nn.Module],
    plan: Sequence[Sequence[int]],
    photos: dataset.ImageDataset,
    tasks: Sequence[str],
    compute: Compute,
    indices: Sequence[int] | None = None,
) -> dict[str, np.ndarray]:
    """Photographs -> {task: float32 probabilities [members, views, images, classes]} (values, for a
    regression).

    plan: see `forward_batches`. `indices`: which photographs (all), in the result's order. Several
    processes take every so many-th photograph each, and all return the whole.
    """
    indices = range(len(photos)) if indices is None else indices
    shape = (len(networks), len(plan[0]), len(indices[compute.rank :: compute.world]))
    answers = {t: torch.zeros(*shape, head_spec(t).outputs, device=compute.device) for t in tasks}
    with make_eval_loader(photos, indices, compute) as reader:
        for m, v, part, outputs in forward_batches(networks, plan, reader, compute, "predicting"):
            for task, array in answers.items():
                array[m, v, part] = model.probabilities(outputs, task)
    return gather_predictions(
        {task: array.cpu().numpy() for task, array in answers.items()}, len(indices), compute.world
    )


@torch.inference_mode()
def validate(
    network: nn.Module,
    heads: Sequence[str],
    reader: loading.Loader,
    images: int,
    compute: Compute,
    label: str,
) -> dict[str, Tensor]:
    """{head: float32 outputs [images, outputs]}, on the CPU: what a loss is reckoned from, and
    `models.probabilities`.

    reader: this process's part of so many `images`, as `make_eval_loader` reads it; all processes
    return the whole.
    """
    own = len(range(compute.rank, images, compute.world))
    kept = {
        head: torch.zeros(1, 1, own, head_spec(head).outputs, device=compute.device)
        for head in heads
    }
    for m, v, part, outputs in forward_batches([network], [[0]], reader, compute, label):
        for head, array in kept.items():
            array[m, v, part] = outputs[head]
    whole = gather_predictions(
        {head: array.cpu().numpy() for head, array in kept.items()}, images, compute.world
    )
    return {head: torch.from_numpy(array[0, 0]) for head, array in whole.items()}


def gather_predictions(
    parts: dict[str, np.ndarray], images: int, world: int
) -> dict[str, np.ndarray]:
    """Put together what `world` processes have of every world-th image: each image once. The same
    in all of them.
    """
    if world == 1:
        return parts
    everyone: list[Any] = [None] * world
    torch.distributed.all_gather_object(everyone, parts)
    whole = {t: np.empty((*a.shape[:2], images, a.shape[3]), a.dtype) for t, a in parts.items()}
    for rank, theirs in enumerate(everyone):
        for task, array in theirs.items():
            whole[task][:, :, rank::world] = array
    return whole


def make_compute(
    s: config.MachineSettings, batch_size: int, who: DistInfo, shared: bool
) -> Compute:
    """Where and how this process computes. shared: whether the processes take part in the same
    batches.

    Raises UserError for a device that this machine lacks.
    """
    device = choose_device(s.device)
    if device.type == "cuda":
        device = select_gpu(device, who)
    set_threads(s.threads or max(1, usable_processors() // who.local_world))
    workers = loading.choose_workers(s.workers, device, who.local_world)
    together = (who.rank, who.world) if shared else (0, 1)
    return Compute(device, choose_precision(s.precision, device), workers, batch_size, *together)


def select_gpu(device: torch.device, who: DistInfo) -> torch.device:
    """The GPU of this process, made torch's current one. Raises UserError where processes would
    share one.
    """
    if who.world > 1:
        there = torch.cuda.device_count()
        if device.index is not None:
            raise UserError(
                f"--device {device}: {who.world} processes take a GPU each; use --device cuda"
            )
        if who.local_world > there:
            raise UserError(
                f"--nproc-per-node {who.local_world}: more processes than the "
                f"{plural(there, 'GPU')} here; start at "
                f"most {there}, or use --device cpu"
            )
        device = torch.device("cuda", who.local_rank)
    if device.index is not None:
        torch.cuda.set_device(device)
    torch.backends.cudnn.benchmark = True  # every batch but the last of an epoch has one shape
    return device
