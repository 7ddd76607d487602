"""People -> folds; the table's rows -> batches of views; oversampling."""

from __future__ import annotations

import math
import mmap
from collections import Counter
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

    `age_filter` (training labels only): whoever is that old or older counts as 60 where age groups
    matter.
    """
    years = table["years"].to_numpy(float)
    grouped = (
        years if age_filter is None else np.where(years >= age_filter, np.maximum(years, 60), years)
    )
    labels = {}
    for name in heads:
        head = head_spec(name)
        ages = years if head.regression else grouped
        distinct, where = tables.distinct_rows(table["mask"], table["gender"], ages)
        values = torch.tensor(
            [head.label(*row) for row in distinct],
            dtype=torch.float32 if head.regression else torch.int64,
        )
        labels[name] = values[torch.from_numpy(where)]
    return labels


@dataclass(frozen=True)
class MixupPartners:
    """For oversampling by mixup: with whom a photograph may be blended."""

    seed: tuple[Hashable, ...]
    # photograph -> photographs of other people with the same labels
    partners: Mapping[int, np.ndarray]


class CropCache:
    """The middle squares of so many photographs, decoded once each, in memory that all reading
    processes share.

    A process that is forked later sees what the others fill in; two that fill one square at once
    write the same.
    """

    SIZE = (
        augmentation.WIDE_CROP_PIXELS * augmentation.WIDE_CROP_PIXELS * 3 + 1
    )  # bytes for a photograph

    def __init__(self, count: int) -> None:
        shape = (count, augmentation.WIDE_CROP_PIXELS, augmentation.WIDE_CROP_PIXELS, 3)
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

    Each photograph is decoded once, whatever the number of views; with `squares` once in all, for
    views that are crops.
    A view's random draws hang on its key, the epoch, the photograph's name and the copy (above 0
    where oversampling repeats it) alone, so neither workers nor order change them. j is i itself,
    or the partner that a copy is blended with half and half.
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

    def look(self, i: int, epoch: int, copy: int) -> list[Image.Image]:
        """All views of one photograph."""
        photo = self.read(i)
        seen = []
        for view in self.views:
            with seeded(*view.key, epoch, copy, self.names[i]):
                if self.squares is not None and isinstance(view.form, augmentation.Crop):
                    seen.append(view.form.cut(photo))
                else:
                    seen.append(view.form(photo, self.boxes.get(self.names[i])))
        return seen

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
        seen = self.look(i, epoch, copy)
        j = i
        if copy and self.blending is not None and len(self.blending.partners.get(i, ())):
            able = self.blending.partners[i]
            j = int(
                able[
                    derive_seed("partner", *self.blending.seed, epoch, copy, self.names[i])
                    % len(able)
                ]
            )
            seen = [
                Image.blend(a, b, 0.5) for a, b in zip(seen, self.look(j, epoch, copy), strict=True)
            ]
        return torch.tensor((i, j)), [
            torch.from_numpy(augmentation.pixels(image)) for image in seen
        ]


class EpochBatchSampler(Sampler[list[tuple[int, int, int]]]):
    """Batches of (epoch, index, copy): the epoch travels with the index, for persistent workers
    never hear of a new one.

    copy counts from 0 how often an index stood earlier in `indices`. shuffle: parts of the seed
    (with the epoch) of each epoch's order, or None for the order as it is. A last batch of fewer
    than `least` photographs joins the batch before it, for BatchNorm cannot train on a single one.
    Process `rank` of `world` is given its share of every batch; the batches themselves do not hang
    on `world`. Of a batch too small for shares of `least`, fewer processes take part: the others
    are given a share that is another's too, with the weight 0.
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
        before: Counter[int] = Counter()
        self.copies = []
        for index in self.indices:
            self.copies.append(before[index])
            before[index] += 1
        self.epoch = 0
        self.start = 0  # batches of this epoch to leave out, because they were trained on before

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        whole = -(-len(self.indices) // self.size)
        rest = len(self.indices) % self.size
        return whole - 1 if 0 < rest < self.least and whole > 1 else whole

    def bounds(self, number: int) -> tuple[int, int]:
        """From where to where in the epoch's order a batch goes, all processes together."""
        return number * self.size, (number + 1) * self.size if number < len(self) - 1 else len(
            self.indices
        )

    def sharing(self, count: int) -> int:
        """How many processes take part in a batch of so many photographs."""
        return max(1, min(self.world, count // self.least))

    def weight(self, step: int) -> float:
        """This process' part of the batch of a step (counted over all epochs), times the number of
        processes.

        By it the mean of the processes' gradients is that of the whole batch, where shares differ
        by one.
        """
        start, end = self.bounds(step % len(self))
        sharing = self.sharing(end - start)
        return (
            len(range(self.rank, end - start, sharing)) * self.world / (end - start)
            if self.rank < sharing
            else 0.0
        )

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        order: Sequence[int] = range(len(self.indices))
        if self.shuffle is not None:
            generator = torch.Generator().manual_seed(
                derive_seed("order", *self.shuffle, self.epoch)
            )
            order = torch.randperm(len(self.indices), generator=generator).tolist()
        keys = [(self.epoch, self.indices[i], self.copies[i]) for i in order]
        for number in range(self.start, len(self)):
            start, end = self.bounds(number)
            sharing = self.sharing(end - start)
            yield keys[start:end][self.rank % sharing :: sharing]


def oversample_rows(rows: Sequence[int], classes: np.ndarray, seed: Hashable) -> list[int]:
    """Row numbers with the rarer classes' repeated, as evenly as can be, until each has as many as
    the largest.

    classes: the class of each of the rows. Whom the last round repeats hangs on the seed.
    """
    extended = list(rows)
    largest = int(np.bincount(classes).max())
    for number in np.unique(classes):
        own = np.asarray(rows)[classes == number]
        for turn in range(largest // len(own)):
            generator = torch.Generator().manual_seed(derive_seed("more", seed, number, turn))
            order = torch.randperm(len(own), generator=generator)
            extended += own[order.numpy()][: largest - (turn + 1) * len(own)].tolist()
    return extended


def find_mixup_partners(
    table: pd.DataFrame, rows: Sequence[int], heads: Sequence[str], seed: tuple[Hashable, ...]
) -> MixupPartners:
    """For each of the rows those of other people with the same labels in all heads (a regression's:
    its groups).

    A photograph without any is repeated instead, which is said once with a count.
    """
    part = table.iloc[list(rows)]
    keys = part[[name if name in INNER_HEADS else scoring_task(name) for name in heads]].apply(
        tuple, axis=1
    )
    people = part["person"].to_numpy()
    partners: dict[int, np.ndarray] = {}
    alone: list[str] = []
    numbers = np.asarray(rows)
    for _, where in pd.Series(range(len(part))).groupby(keys.to_numpy()):
        inside = where.to_numpy()
        for k in inside:
            partners[int(numbers[k])] = numbers[inside[people[inside] != people[k]]]
        if len(set(people[inside])) == 1:
            alone.append(str(people[inside[0]]))
    warn_counted(
        alone,
        "classes of a single person have nobody to blend with, their photographs are repeated "
        "instead",
    )
    return MixupPartners(seed, partners)
