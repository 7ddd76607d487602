"""The table's rows -> batches of views; oversampling."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.data import Dataset, Sampler

import augmentation
from data import faces, images, tables
from labels import INNER_HEADS, head_spec, scoring_task
from runtime.errors import warn_counted
from utils import derive_seed, seeded


def label_tensors(
    table: pd.DataFrame, heads: Sequence[str], age_filter: int | None = None
) -> dict[str, torch.Tensor]:
    """{task or inner head: labels of every row}: int64 classes, float32 values of a regression.

    age_filter (training labels only): everybody of that age or older counts as 60 in age groups.
    """
    years = table["years"].to_numpy(float)
    filtered = np.where(years >= (age_filter or np.inf), np.maximum(years, 60), years)
    labels = {}
    for name in heads:
        head = head_spec(name)
        ages = years if head.regression else filtered
        distinct, where = tables.distinct_rows(table["mask"], table["gender"], ages)
        dtype = torch.float32 if head.regression else torch.int64
        values = torch.tensor([head.label(*row) for row in distinct], dtype=dtype)
        labels[name] = values[torch.from_numpy(where)]
    return labels


@dataclass(frozen=True)
class MixupPartners:
    """For oversampling by mixup: with which photographs each may be blended."""

    seed: tuple[Hashable, ...]
    partners: Mapping[int, np.ndarray]  # row -> rows of other people with the same labels

    def draw(self, row: int, *key: Hashable) -> int:
        """A partner of a row, by the seed and the key; the row itself where it has none."""
        partners = self.partners.get(row, ())
        if not len(partners):
            return row
        return int(partners[derive_seed("partner", *self.seed, *key) % len(partners)])


class CropCache:
    """The middle squares of `count` photographs, each decoded once, in memory that all reading
    processes share: two that fill one square at once write the same.
    """

    SHAPE = (augmentation.WIDE_CROP_PIXELS, augmentation.WIDE_CROP_PIXELS, 3)
    SIZE = math.prod(SHAPE) + 1  # bytes for a photograph

    def __init__(self, count: int) -> None:
        shape = (count, *self.SHAPE)
        self.pixels = np.frombuffer(mmap.mmap(-1, math.prod(shape)), np.uint8).reshape(shape)
        self.filled = np.frombuffer(mmap.mmap(-1, count), np.uint8)

    def get(self, i: int, make: Callable[[], Image.Image]) -> Image.Image:
        """Square i, made where it is not there yet."""
        if not self.filled[i]:
            self.pixels[i] = augmentation.pixels(make())
            self.filled[i] = 1
        return Image.fromarray(self.pixels[i])


class ImageDataset(Dataset[tuple[torch.Tensor, list[torch.Tensor]]]):
    """Item (epoch, i, copy) -> ((i, j), one uint8 [height, width, 3] per view).

    Each photograph is decoded once for all views; with `squares` once in all, for views that are
    crops. A view's random draws depend on its key, the epoch, the photograph's name and the copy
    (above 0 where oversampling repeats it) alone, not on workers or order. j is i itself, or the
    partner that a copy is blended with half and half.
    """

    def __init__(
        self,
        names: Sequence[str],
        paths: Sequence[str | Image.Image],
        views: Sequence[augmentation.View],
        boxes: Mapping[str, faces.Box] | None = None,
        blending: MixupPartners | None = None,
        squares: CropCache | None = None,
    ) -> None:
        self.names, self.paths, self.views = list(names), list(paths), list(views)
        self.boxes, self.blending, self.squares = boxes or {}, blending, squares

    def __len__(self) -> int:
        return len(self.paths)

    def render(self, i: int, epoch: int, copy: int) -> list[Image.Image]:
        """All views of one photograph."""
        photo = self.read(i)
        rendered = []
        for view in self.views:
            with seeded(*view.key, epoch, copy, self.names[i]):
                if self.squares is not None and isinstance(view.form, augmentation.Crop):
                    rendered.append(view.form.cut(photo))
                else:
                    rendered.append(view.form(photo, self.boxes.get(self.names[i])))
        return rendered

    def read(self, i: int) -> Image.Image:
        """Image i, decoded; its middle square where squares are kept."""
        crop, cache = self.views[0].form, self.squares
        if cache is not None and isinstance(crop, augmentation.Crop):
            return cache.get(i, lambda: crop.square(self.decode(i)))
        return self.decode(i)

    def decode(self, i: int) -> Image.Image:
        """Image i as it is: read from its file, unless it is in memory."""
        source = self.paths[i]
        return source if isinstance(source, Image.Image) else images.read_image(source)

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        epoch, i, copy = key
        views, j = self.render(i, epoch, copy), i
        if copy and self.blending is not None:
            j = self.blending.draw(i, epoch, copy, self.names[i])
        if j != i:
            partners = self.render(j, epoch, copy)
            views = [Image.blend(a, b, 0.5) for a, b in zip(views, partners, strict=True)]
        return torch.tensor((i, j)), [torch.from_numpy(augmentation.pixels(v)) for v in views]


class EpochBatchSampler(Sampler[list[tuple[int, int, int]]]):
    """Batches of (epoch, index, copy): persistent workers learn the epoch with each index.

    copy counts how often an index stood earlier in `indices`. shuffle: parts of the seed (with the
    epoch) of each epoch's order; None: the order as it is. A last batch of fewer than `least`
    photographs joins the one before it, for BatchNorm cannot train on a single one.
    Process `rank` of `world` gets its share of every batch; the batches do not depend on `world`.
    Where a batch is too small for shares of `least`, fewer processes take part: the others get a
    share that another has too, with the weight 0.
    """

    def __init__(
        self,
        indices: Sequence[int],
        size: int,
        shuffle: tuple[Any, ...] | None = None,
        least: int = 1,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.indices, self.size, self.shuffle = list(indices), size, shuffle
        self.least, self.rank, self.world = least, rank, world
        series = pd.Series(self.indices, dtype=int)
        self.copies = series.groupby(series).cumcount().tolist()
        self.epoch = 0
        self.start = 0  # batches of this epoch to leave out: they were trained on before

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        whole = -(-len(self.indices) // self.size)
        rest = len(self.indices) % self.size
        return whole - 1 if 0 < rest < self.least and whole > 1 else whole

    def split(self, number: int) -> tuple[range, int]:
        """(positions of a batch in the epoch's order, how many processes share it)."""
        start, last = number * self.size, number >= len(self) - 1
        batch = range(start, len(self.indices) if last else start + self.size)
        return batch, max(1, min(self.world, len(batch) // self.least))

    def weight(self, step: int) -> float:
        """This process's part of the batch of a step (counted over all epochs), times `world`: with
        it the mean of the processes' gradients is that of the whole batch.
        """
        batch, sharing = self.split(step % len(self))
        own = batch[self.rank :: sharing] if self.rank < sharing else ()
        return len(own) * self.world / len(batch)

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        order: Sequence[int] = range(len(self.indices))
        if self.shuffle is not None:
            order = seeded_permutation(len(order), "order", *self.shuffle, self.epoch)
        keys = [(self.epoch, self.indices[i], self.copies[i]) for i in order]
        for number in range(self.start, len(self)):
            batch, sharing = self.split(number)
            yield [keys[position] for position in batch[self.rank % sharing :: sharing]]


def seeded_permutation(count: int, *seed: Hashable) -> list[int]:
    """The numbers below `count` in a random order that the seed decides."""
    generator = torch.Generator().manual_seed(derive_seed(*seed))
    return torch.randperm(count, generator=generator).tolist()


def oversample_rows(rows: Sequence[int], classes: np.ndarray, seed: Hashable) -> list[int]:
    """Row numbers, those of rarer classes repeated until each class has as many as the largest.

    classes: the class of each row. Repeats are even; the seed decides whose the last few are.
    """
    extended = list(rows)
    largest = int(np.bincount(classes).max())
    for number in np.unique(classes):
        own = np.asarray(rows)[classes == number]
        for turn in range(largest // len(own)):
            order = seeded_permutation(len(own), "more", seed, number, turn)
            extended += own[order][: largest - (turn + 1) * len(own)].tolist()
    return extended


def find_mixup_partners(
    table: pd.DataFrame, rows: Sequence[int], heads: Sequence[str], seed: tuple[Hashable, ...]
) -> MixupPartners:
    """For each of the rows those of other people with the same labels in all heads (a regression's:
    its groups). One counted warning for classes of a single person, which are repeated instead.
    """
    part = table.iloc[list(rows)].assign(row=list(rows))
    columns = dict.fromkeys(n if n in INNER_HEADS else scoring_task(n) for n in heads)
    partners: dict[int, np.ndarray] = {}
    alone: list[str] = []
    for _, group in part.groupby(list(columns)):
        people, numbers = group["person"].to_numpy(), group["row"].to_numpy()
        partners |= {int(n): numbers[people != p] for n, p in zip(numbers, people, strict=True)}
        if len(set(people)) == 1:
            alone.append(str(people[0]))
    warn_counted(
        alone, "classes of a single person cannot be blended, so they are repeated instead"
    )
    return MixupPartners(seed, partners)
