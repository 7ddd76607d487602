"""Checkpoints that vote, ready to predict: the one path from images to probabilities."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

import augmentation
import config
import dataset
import engine
import ensemble
import metrics
import model
import out_of_fold
import registries
import run_directory
from checkpoint import Checkpoint
from data import folders, images, tables
from inference import openvino_backend, runs, submission
from inference.members import build_network, labels_run_dir, load_member, part_groups
from labels import PARTS, TASKS, scoring_task
from runtime import loading
from runtime.errors import DistInfo, UserError, is_rank_zero, printable, warn_counted
from runtime.options import build_parser, flag

Photo = str | Path | Image.Image | np.ndarray  # an array: uint8 [height, width, 3]


@dataclass(frozen=True)
class PredictionRequest:
    """What the members are to predict, and how they see each image."""

    task: str
    transform: str  # config.AUTO: each member's own
    views: int = 1  # per member and image
    boxes_csv: str | None = None  # face boxes in place of the finder's
    skip_bad_images: bool = False  # predict the most frequent class where an image is unreadable


class Predictor:
    """The checkpoints of a run, or of several, that vote on images.

    >>> predictor = Predictor.load("saved_models/kfold-ensemble-VanillaEfficientNet")
    >>> predictor.predict("photo.jpg")
    >>> predictor.predict("folder", tta=2)
    >>> predictor.predict([PIL.Image.open("a.png"), array])
    """

    def __init__(
        self,
        members: Sequence[Checkpoint],
        task: str,
        compute: engine.Compute,
        backend: str = "torch",
    ) -> None:
        """Build the members' networks. Raises UserError where members do not know the task, or the
        backend does not run on the device.
        """
        if backend != "torch":
            config.check_installed("--backend", backend)
            if compute.device.type != "cpu":
                raise UserError(f"--backend {backend}: runs on a processor; use --device cpu")
        self.members, self.task, self.compute = list(members), task, compute
        self.backend = backend
        self.groups = part_groups(members, task)
        convert = registries.import_target(registries.BACKENDS[backend])
        networks = [build_network(member, task, compute.device) for member in members]
        self.networks = [model.InferenceNetwork(network, convert) for network in networks]

    @classmethod
    def load(
        cls,
        *paths: str | Path,
        task: str = "main",
        top_k: int = 3,
        device: str = "auto",
        batch_size: int = 32,
        precision: str = "auto",
        backend: str = "torch",
    ) -> Predictor:
        """The `top_k` best checkpoints of each fold of the runs in these folders (the newest run
        under ./saved_models where none is named), or one `.pth` file. device, precision and backend
        are as the submit scripts' options. Raises UserError, whose text says what to do.
        """
        s = read_options(
            task=task,
            top_k=top_k,
            device=device,
            batch_size=batch_size,
            precision=precision,
            backend=backend,
            workers=0,
        )
        if len(paths) == 1 and Path(paths[0]).is_file():
            members = [load_member(Path(paths[0]), s.task)]
        else:
            voting = runs.load_runs([str(path) for path in paths], s.top_k or 1, s.task)
            members = [member for run in voting for member in run.members]
        compute = engine.make_compute(s, s.batch_size, DistInfo(), shared=True)
        return cls(members, s.task, compute, s.backend)

    def predict(
        self, photos: Photo | Iterable[Photo], tta: int = 1, transform: str = config.AUTO
    ) -> pd.DataFrame:
        """A row per image: `file`, `class` and its `name`, for `main` also `mask`, `gender` and
        `ageg`, then the probabilities `p0`, `p1` ... of the members' mean (for `age`: `years`).

        photos: a file, a folder, an image (Pillow, or an array uint8 [height, width, 3]) or several
        of them; images without a file are called `image 0`, `image 1` ... tta: views of each image;
        transform: the crop, by default that of each checkpoint's validation. Raises UserError for
        files that cannot be read.
        """
        names, sources = list_photos(photos)
        s = read_options(tta=tta, transform_type=transform)
        request = PredictionRequest(self.task, s.transform_type or config.AUTO, s.tta or 1)
        array = self.probabilities(request, names, sources).array
        return predictions_table(self.task, names, ensemble.arithmetic(array))

    def probabilities(
        self, request: PredictionRequest, names: Sequence[str], photos: Sequence[str | Image.Image]
    ) -> ensemble.Probabilities:
        """Probabilities of all members, views and images, in the order of `names`; each image is
        decoded once. The same in all processes that share the images.

        photos: paths, or upright RGB images. Raises UserError naming all unreadable files, unless
        the request skips them.
        """
        members, compute = self.members, self.compute
        paths = [photo for photo in photos if isinstance(photo, str)]
        bad = set(images.find_unreadable(paths, request.skip_bad_images))
        good = [i for i, photo in enumerate(photos) if str(photo) not in bad]
        good_names, good_photos = [names[i] for i in good], [photos[i] for i in good]
        transforms = resolve_transforms(members, request.transform, request.views)
        sizes = [(m.name, t, m.info.image_size) for m, t in zip(members, transforms, strict=True)]
        views, plan = augmentation.plan_views(
            sizes, request.views, request.transform == config.AUTO
        )
        boxes = None
        if request.boxes_csv is not None:
            if not any(registries.TRANSFORMS[name].of_face for name in transforms):
                raise UserError(
                    f"--boxes {request.boxes_csv}: none of these checkpoints was trained on "
                    "cropped faces; leave --boxes out"
                )
            good_paths = [path for path in paths if path not in bad]
            boxes = tables.read_boxes(request.boxes_csv, good_names, good_paths)
        side = max(member.info.image_size for member in members)
        passes = len(good) * sum(map(len, plan))
        faster = openvino_backend.faster_options(compute.device, passes)
        if faster and self.backend == "torch" and is_rank_zero():
            print(f"note: {faster}")
        workers = loading.workers_that_fit_shared_memory(
            compute.workers, compute.batch_size, side, len(views), compute.world
        )
        compute = dataclasses.replace(compute, workers=workers)
        image_set = dataset.ImageDataset(good_names, good_photos, views, boxes)
        array = engine.predict(self.networks, plan, image_set, [self.task], compute)[self.task]
        for member, values in zip(members, array, strict=True):
            if not np.isfinite(values).all():
                raise UserError(
                    f"{member.path}: predictions are NaN or infinite; use another file, or "
                    "--precision fp32"
                )
        member_names, infos = [m.name for m in members], [m.info for m in members]
        folds, weights = [info.fold for info in infos], [info.macro_f1 for info in infos]
        probs = ensemble.Probabilities(self.task, array, member_names, folds, weights, good_names)
        probs = probs.multiply_groups(self.groups)
        if not bad:
            return probs
        return fill_unreadable(probs, list(names), good, labels_run_dir(members, self.task))


def read_options(**values: object) -> config.EnsembleSettings:
    """Settings from values given in Python, read and checked as on the command line. Raises
    UserError.
    """
    words = [f"{flag(name)}={value}" for name, value in values.items()]
    parser = build_parser(config.EnsembleSettings, "", "")
    return config.EnsembleSettings(**vars(parser.parse_args(words)))


def list_photos(photos: Photo | Iterable[Photo]) -> tuple[list[str], list[str | Image.Image]]:
    """(names, paths or upright RGB images) of a file, a folder, an image, or several of them."""
    if isinstance(photos, (str, Path)) and Path(photos).is_dir():
        listed = folders.list_folder(Path(photos))
        paths = [str(path) for name, path in listed.items() if images.is_image_name(name)]
        if not paths:
            raise UserError(f"{photos}: no photographs in it; name another folder")
        return [Path(path).name for path in paths], list(paths)
    if isinstance(photos, (str, Path, Image.Image, np.ndarray)):
        photos = [photos]
    names: list[str] = []
    sources: list[str | Image.Image] = []
    for number, photo in enumerate(photos):
        if isinstance(photo, (str, Path)):
            names.append(str(photo))
            sources.append(str(photo))
        else:
            names.append(f"image {number}")
            sources.append(images.to_rgb(photo))
    return names, sources


def predictions_table(task: str, names: Sequence[str], probabilities: np.ndarray) -> pd.DataFrame:
    """What `Predictor.predict` returns, from the probabilities [images, classes] or years."""
    predicted = ensemble.decide(task, probabilities)
    classes = metrics.to_classes(task, predicted)
    columns: dict[str, object] = {"file": list(names), "class": classes}
    columns["name"] = [TASKS[scoring_task(task)].classes[number] for number in classes]
    if task == "main":
        for part in PARTS:
            part_names, index = TASKS[part].classes, TASKS[part].from_main
            columns[part] = [part_names[index[number]] for number in classes]
    if TASKS[task].regression:
        return pd.DataFrame(columns | {"years": predicted})
    values = pd.DataFrame(probabilities, columns=out_of_fold.probability_columns(task))
    return pd.concat([pd.DataFrame(columns), values], axis=1)


def predicted_lines(task: str, names: Sequence[str], probabilities: np.ndarray) -> list[str]:
    """`photo.jpg: wear, male, under 30 (0.83)` for each image; for `age` its years."""
    table = predictions_table(task, names, probabilities)
    is_regression = TASKS[task].regression
    values = table["years"] if is_regression else pd.Series(probabilities.max(axis=1))
    form = "{:.1f} years".format if is_regression else "{:.2f}".format
    rows = zip(table["file"], table["name"], values, strict=True)
    return [f"{printable(file)}: {name} ({form(value)})" for file, name, value in rows]


def resolve_transforms(members: Sequence[Checkpoint], transform: str, views: int) -> list[str]:
    """The transform type of each member's views. Prints a note where `auto` takes another than the
    member's own, or where its validation saw another part of the image.

    Raises UserError where several views would all be the same.
    """
    transforms, is_auto = registries.TRANSFORMS, transform == config.AUTO
    trained = [member.info.transform for member in members]
    automatic = [(views > 1 and transforms[name].random_form) or name for name in trained]
    used = automatic if is_auto else [transform] * len(members)
    for name in used:
        config.check_views(name, views)
    notes = []
    pairs = list(zip(used, trained, strict=True))
    replaced = sorted({f"{new} for {old}" for new, old in pairs if new != old})
    if is_auto and replaced:
        notes.append(
            f"--tta {views} needs random views, so {config.AUTO} takes {', '.join(replaced)}"
        )
    unlike = [new for new, old in pairs if transforms[new].sees != transforms[old].sees]
    if unlike:
        name, validated = min(unlike), [transforms[old].sees for old in trained]
        auto_matches = [transforms[new].sees for new in automatic] == validated
        notes.append(
            f"{name} looks at {transforms[name].sees}, validation looked at "
            f"{', '.join(sorted(set(validated)))}; --transform-type {config.AUTO}"
            f"{'' if auto_matches else ' with --tta 1'} looks where validation did"
        )
    if notes and is_rank_zero():
        print(f"note: {'; '.join(notes)}")
    return used


def fill_unreadable(
    probs: ensemble.Probabilities, names: list[str], good: Sequence[int], run_dir: Path
) -> ensemble.Probabilities:
    """Probabilities of all names: those of `good` positions, the others the most frequent class."""
    value, source = most_frequent_class(probs, run_dir)
    spec = TASKS[probs.task]
    members, views, _, outputs = probs.array.shape
    array = np.zeros((members, views, len(names), outputs), probs.array.dtype)
    if spec.regression:
        array[...], shown = value, f"{value:g} years, the median"
    else:
        array[..., int(value)] = 1
        shown = f"{int(value)} ({spec.classes[int(value)]}), the commonest"
    array[:, :, good] = probs.array
    bad = [names[i] for i in sorted(set(range(len(names))).difference(good))]
    warn_counted(bad, f"photographs that cannot be read, answered with {shown} of {source}")
    return dataclasses.replace(probs, array=array, images=names)


def most_frequent_class(probs: ensemble.Probabilities, run_dir: Path) -> tuple[float, str]:
    """(the most frequent class or median of years, whose): training data's, else predictions'."""
    is_regression = TASKS[probs.task].regression
    if is_regression:
        with contextlib.suppress(UserError, KeyError, ValueError):  # an older run, or none
            median = run_directory.read_run_json(run_dir)["data"]["median_age"]
            return tables.parse_years(str(median)), "the training data"
    elif (counts := submission.training_counts(run_dir, probs.task)) is not None:
        return float(counts.argmax()), "the training data"
    decided = ensemble.decide(probs.task, ensemble.arithmetic(probs.array))
    value = np.median(decided) if is_regression else np.bincount(decided).argmax()
    return float(value), "the other predictions"
