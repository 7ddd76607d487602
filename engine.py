"""Train one epoch; one pass from photographs to outputs, for validation and all predictions."""

from __future__ import annotations

import functools
import math
import operator
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import augmentation
import dataset
import model
import optim
from config import MachineSettings
from labels import TASKS, head_spec
from runtime import loading
from runtime.cli import progress
from runtime.compute import Compute, choose_precision, select_gpu
from runtime.devices import choose_device, usable_processors
from runtime.errors import DistInfo
from utils import derive_seed


@functools.cache  # making them anew for each batch would make the host wait for a GPU
@torch.inference_mode(False)
def imagenet_statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation [1, 3, 1, 1] of ImageNet's pixels, counted from 0 to 255."""
    mean, deviation = (
        torch.tensor(values, device=device).view(1, 3, 1, 1) * 255
        for values in (augmentation.IMAGENET_MEAN, augmentation.IMAGENET_STD)
    )
    return mean, deviation


def to_network(compute: Compute, pixels: Tensor) -> Tensor:
    """uint8 [batch, height, width, 3] -> normalised float32 [batch, 3, height, width] on device."""
    images = compute.to_device(pixels).permute(0, 3, 1, 2).float()
    mean, deviation = imagenet_statistics(compute.device)
    return images.sub_(mean).div_(deviation)


def blend_labels(labels: Tensor, partners: Tensor) -> Tensor:
    """Labels of half-and-half blends: partners share the class; of values the mean."""
    return (labels + partners) / 2 if labels.is_floating_point() else labels


class RunningLoss:
    """The mean loss and accuracy of an epoch, summed in float64 on the device of the batches."""

    def __init__(self, device: torch.device, sums: Sequence[float] = ()) -> None:
        """sums: what an interrupted epoch had counted (see `kept`)."""
        dtype = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        # losses, photographs, hits, whether hits are counted, the first step whose loss is NaN or
        # infinite (-1: none)
        start = list(sums) or [0.0, 0.0, 0.0, 0.0, -1.0]
        self.sums = torch.tensor(start, dtype=dtype, device=device)

    def add(
        self,
        loss: Tensor,
        count: int,
        step: int,
        hits: Tensor | None = None,
        total: Callable[[Tensor], object] | None = None,
    ) -> None:
        """loss: the mean of a batch of `count` photographs; hits: how many are predicted rightly;
        total: sums a tensor in place over the processes that share the batch.
        """
        mean = loss.detach().to(self.sums.dtype)
        right = mean.new_zeros(()) if hits is None else hits.to(mean.dtype)
        is_bad = (~mean.isfinite()).to(mean.dtype)
        new = torch.stack([mean * count, mean.new_full((), count), right, is_bad])
        if total is not None:
            total(new)
        self.sums[:3] += new[:3]
        if hits is not None:
            self.sums[3] = 1
        self.sums[4] = self.sums[4].where((self.sums[4] >= 0) | (new[3] == 0), step)

    def kept(self) -> list[float]:
        """All counts as plain numbers. Waits for the device."""
        return self.sums.tolist()

    def read(self) -> tuple[float, float, int]:
        """(mean loss, accuracy or NaN without hits, photographs). Waits for the device."""
        losses, count, hits, has_hits, _ = self.kept()
        return losses / max(count, 1), hits / max(count, 1) if has_hits else math.nan, int(count)

    def first_bad(self) -> int | None:
        """The first step whose loss was not finite. Waits for the device."""
        step = int(self.kept()[4])
        return step if step >= 0 else None


@dataclass(frozen=True)
class EpochConfig:
    """What every epoch of a fold's training follows."""

    task: str  # the head whose hits are counted
    criteria: Mapping[str, nn.Module]  # the loss of each head; training minimizes their sum
    labels: Mapping[str, Tensor]  # {head: labels of every image}, on the device
    learning_rate: Callable[[int], float]  # of each step of the whole run
    clip_grad: float | None
    seed: tuple[object, ...]  # what dropout's draws derive from, with the step and the process
    scaler: torch.amp.GradScaler  # of half-precision gradients
    compute: Compute
    # called with the counts and the number of the epoch's steps that are done, after each
    after_step: Callable[[RunningLoss, int], None] | None = None


def train_one_epoch(
    network: nn.Module, optimizer: Optimizer, loader: Any, config: EpochConfig, running: RunningLoss
) -> float:
    """One pass over the loader's batches, from the sampler's `start` on; returns images a second.

    network: the model in training mode, or torch's wrapper of it (compiled, DDP). running: where
    losses and hits are counted, of an epoch that is resumed with what it had counted. Nothing here
    waits for the device.
    """
    sampler, compute = loader.batch_sampler, config.compute
    first_step = sampler.epoch * len(sampler)
    step = first_step + sampler.start
    all_reduce = torch.distributed.all_reduce if compute.world > 1 else None
    # processes that share a batch would draw the same dropout masks
    rank = (compute.rank,) if compute.rank else ()
    seen, start = 0, time.perf_counter()
    for pairs, views in progress(loader, f"epoch {sampler.epoch + 1}"):
        # Dropout draws from the global generator: seeded by the step, an epoch can be resumed in
        # its middle.
        torch.manual_seed(derive_seed("step", *config.seed, step, *rank))
        index, partner = compute.to_device(pairs).unbind(1)
        images = to_network(compute, views[0])
        # before the forward pass: CUDA graphs write over the old ones
        optimizer.zero_grad(set_to_none=True)
        with compute.autocast():
            outputs = network(images)
        labels = {
            head: blend_labels(config.labels[head][index], config.labels[head][partner])
            for head in config.criteria
        }
        losses = [
            criterion(outputs[head].float(), labels[head])
            for head, criterion in config.criteria.items()
        ]
        loss = torch.stack(losses).sum()
        optim.set_lr(optimizer, config.learning_rate(step))
        weight = sampler.weight(step)
        config.scaler.scale(loss * weight).backward()
        if config.clip_grad is not None:
            config.scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(network.parameters(), config.clip_grad)
        config.scaler.step(optimizer)
        config.scaler.update()
        hits = None
        if config.task in outputs and not TASKS[config.task].regression:
            right = outputs[config.task].detach().argmax(1) == labels[config.task]
            hits = right.sum() * (weight > 0)
        running.add(loss, len(index) if weight else 0, step, hits, all_reduce)
        step += 1
        seen += len(index)
        if config.after_step is not None:
            config.after_step(running, step - first_step)
    if compute.device.type == "cuda":
        torch.cuda.synchronize(compute.device)
    return seen * compute.world / (time.perf_counter() - start)


def make_eval_loader(
    photos: dataset.ImageDataset, indices: Sequence[int], compute: Compute
) -> loading.Loader:
    """A loader of this process's part of the photographs; `with` ends its workers."""
    batches = dataset.EpochBatchSampler(indices[compute.rank :: compute.world], compute.batch_size)
    return loading.make_loader(photos, batches, compute.workers, compute.device)


@torch.inference_mode()
def forward_all(
    networks: Sequence[nn.Module],
    plan: Sequence[Sequence[int]],
    loader: loading.Loader,
    images: int,
    readers: Mapping[str, Callable[[dict[str, Tensor]], Tensor]],
    compute: Compute,
    label: str,
) -> dict[str, np.ndarray]:
    """{head or task: float32 [members, passes, images, classes]}: what its reader takes of the
    members' outputs {head: [batch, classes]}.

    plan[m][v]: which of the photographs' views member m reads in its pass v. Every photograph is
    decoded once and all members see each batch. loader: this process's part of so many `images`, by
    `make_eval_loader`; all processes return the whole.
    """
    for network in networks:
        network.eval()
    own = len(range(compute.rank, images, compute.world))
    shape = (len(networks), len(plan[0]), own)
    arrays = {n: torch.zeros(*shape, head_spec(n).outputs, device=compute.device) for n in readers}
    done = 0
    for pairs, views in progress(loader, label):
        part = slice(done, done + len(pairs))
        # one view at a time: every member may have views of its own
        pixels, converted = (Tensor(), -1)
        for m, (network, row) in enumerate(zip(networks, plan, strict=True)):
            for v, which in enumerate(row):
                if which != converted:
                    pixels, converted = to_network(compute, views[which]), which
                with compute.autocast():
                    outputs = network(pixels)
                for name, array in arrays.items():
                    array[m, v, part] = readers[name](outputs)
        done = part.stop
    return gather_predictions(arrays, images, compute.world)


def predict(
    networks: Sequence[nn.Module],
    plan: Sequence[Sequence[int]],
    photos: dataset.ImageDataset,
    tasks: Sequence[str],
    compute: Compute,
) -> dict[str, np.ndarray]:
    """Images -> {task: probabilities or values [members, views, images, classes]}: forward_all."""
    readers = {task: functools.partial(model.probabilities, task=task) for task in tasks}
    with make_eval_loader(photos, range(len(photos)), compute) as loader:
        return forward_all(networks, plan, loader, len(photos), readers, compute, "predicting")


def validate(
    network: nn.Module, heads: Sequence[str], loader: loading.Loader, images: int, compute: Compute
) -> dict[str, Tensor]:
    """{head: float32 outputs [images, outputs]}, on the CPU. See `forward_all`."""
    readers = {head: operator.itemgetter(head) for head in heads}
    networks = [model.InferenceNetwork(network)]
    arrays = forward_all(networks, [[0]], loader, images, readers, compute, "validating")
    return {head: torch.from_numpy(array[0, 0]) for head, array in arrays.items()}


def gather_predictions(arrays: dict[str, Tensor], images: int, world: int) -> dict[str, np.ndarray]:
    """Join what `world` processes predicted for every world-th image each; the same in all."""
    parts = {task: array.cpu().numpy() for task, array in arrays.items()}
    if world == 1:
        return parts
    all_parts: list[Any] = [None] * world
    torch.distributed.all_gather_object(all_parts, parts)
    whole = {t: np.empty((*a.shape[:2], images, a.shape[3]), a.dtype) for t, a in parts.items()}
    for rank, part in enumerate(all_parts):
        for task, array in part.items():
            whole[task][:, :, rank::world] = array
    return whole


def make_compute(s: MachineSettings, batch_size: int, dist: DistInfo, shared: bool) -> Compute:
    """Where and how this process computes. shared: whether all processes share each batch.

    Raises UserError for a device that this machine lacks.
    """
    device = choose_device(s.device)
    if device.type == "cuda":
        device = select_gpu(device, dist)
    torch.set_num_threads(s.threads or max(1, usable_processors() // dist.local_world))
    workers = loading.choose_workers(s.workers, device, dist.local_world)
    rank, world = (dist.rank, dist.world) if shared else (0, 1)
    return Compute(device, choose_precision(s.precision, device), workers, batch_size, rank, world)
