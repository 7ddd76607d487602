"""The driver of a run: one fold after the other, then what all of them tell together."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pandas as pd

import augmentation
import checkpoint
import config
import dataset
import engine
import ensemble
import loading
import metrics
import model
import out_of_fold
import run_directory
from data import tables
from reporting import html, label_issues, summary
from runtime import cli, distributed, errors
from runtime.cli import StopSignal, duration
from runtime.errors import DistInfo, plural, printable, warn, warn_on_failure
from training import fold as training_fold
from training import run as training_run
from training.run import RunContext

MAX_LABEL_ISSUES_SHOWN = 24  # suspects with pictures in the report


def train_all_folds(settings: config.TrainSettings) -> int:
    """Train all folds. Returns the exit code: 0, or 1 where a fold failed."""
    cli.quiet = settings.quiet
    remedy = " in a new run (--resume takes no other batch size)"
    with (
        distributed.distributed() as who,
        distributed.explain_failures(settings.batch_size, remedy, "; go on with --resume"),
    ):
        return train_folds(settings, who)


def train_folds(settings: config.TrainSettings, who: DistInfo) -> int:
    """What `run` does, as one of these processes."""
    study, outside = distributed.on_all_ranks(who, lambda: training_run.prepare_run(settings, who))
    if who.first:
        print(*training_run.banner(study), sep="\n", flush=True)
    if settings.dry_run:
        if who.first:
            print(*estimate_cost(study), sep="\n")
        return 0
    study = dataclasses.replace(
        study,
        tree=distributed.broadcast_from_rank0(
            who, lambda: training_run.create_run_dir(study, outside)
        ),
    )
    # from here on there is something to go on with
    errors.retry_remedy = (
        "give the same command again" if settings.run_name else "go on with --resume"
    )
    clock = training_fold.RemainingTime(settings.epochs * len(study.own_folds))
    failed: dict[int, str] = {}
    with StopSignal() as stop:
        for number in study.own_folds:
            try:
                with distributed.explain_lost_processes(
                    stop, f"; the same command with --resume goes on ({study.tree})"
                ):
                    training_fold.train_fold(study, number, clock, stop)
            except training_fold.Diverged as error:
                failed[number] = str(error)
                warn(str(error))
    return finish_run(study, outside, failed) if study.writes else 1 if failed else 0


def finish_run(study: RunContext, outside: pd.DataFrame | None, failed: dict[int, str]) -> int:
    """The tables of a tree that is complete; whichever process completes it writes them."""
    answers = {
        number: training_fold.finished(study, number)
        for number in study.folds
        if number not in failed
    }
    missing = [number for number, found in answers.items() if found is None]
    if missing:
        print(
            f"{plural(len(missing), 'fold is', 'folds are')} not complete yet "
            f"({', '.join(map(str, missing))}); the run that "
            "completes the tree writes its table"
        )
        return 1 if failed else 0
    task = study.settings.task
    done = [
        out_of_fold.fold_predictions(
            task, number, study.table.iloc[study.validation_rows(number)], found
        )
        for number, found in answers.items()
        if found is not None
    ]
    if done:
        print(*out_of_fold.summary(task, done, failed), sep="\n")
        analyze_out_of_fold(study, done)
    if outside is not None and done:
        print(score_holdout(study, outside))
    content = run_directory.read_run_json(study.tree)
    content |= {"finished": time.strftime("%Y-%m-%dT%H:%M:%S"), "failed": failed}
    run_directory.write_json(study.tree / "run.json", content)
    return 1 if failed else 0


def analyze_out_of_fold(study: RunContext, done: list[out_of_fold.FoldPredictions]) -> None:
    """What the out-of-fold answers tell beyond their score: tables, suspects, the report."""
    task, tree = study.settings.task, study.tree
    rows, answers = out_of_fold.nested_epoch_predictions(done)
    table = out_of_fold.write_oof(tree, task, rows, answers)
    extra: dict[str, list[tuple[str, object]]] = {}
    if len(done) > 1:
        flattered, plain = (
            out_of_fold.selected_scores(task, done).macro_f1,
            out_of_fold.score_rows(task, rows, answers).macro_f1,
        )
        extra["What choosing epochs flatters"] = [
            ("macro F1 with each fold's own best epoch", f"{flattered:.4f}"),
            ("headline: each fold's epoch chosen by the others", f"{plain:.4f}"),
            ("optimism", f"{flattered - plain:+.4f}"),
        ]
    if task == "main":
        found = label_issues.find_label_issues(rows, answers)
        label_issues.write_suspects(tree / "suspects.csv", found)
        print(
            f"{plural(len(found), 'label')} to look at, the most suspicious first: "
            f"{printable(tree / 'suspects.csv')}"
        )
        paths = dict(zip(study.table["file"], study.table["path"], strict=True))
        extra["Labels to look at"] = [
            (
                row.file,
                html.Picture(paths[row.file], f"{row.kind}: {row.given}? looks {row.suggested}"),
            )
            for row in found.head(MAX_LABEL_ISSUES_SHOWN).itertuples()
        ]
    with warn_on_failure(f"report of {tree}"):
        summary.training_report(tree, study.table, table, extra)


def score_holdout(study: RunContext, outside: pd.DataFrame) -> str:
    """The final ensemble, all kept checkpoints of all folds, on people whom no choice has seen."""
    s = study.settings
    members = [
        pair
        for folder in run_directory.fold_dirs(study.tree)
        for pair in checkpoint.load_ranked(folder)
    ]
    rebuilt = [
        model.build_from_checkpoint(info, found.weights, str(found.path)) for found, info in members
    ]
    networks = [model.to_device(network, study.compute.device) for network in rebuilt]
    view = augmentation.View(augmentation.forms(s.transform_type, s.image_size).valid)
    names, paths = outside["file"].tolist(), outside["path"].tolist()
    boxes = tables.read_boxes(s.boxes, names, paths) if s.boxes else None
    photos = dataset.ImageDataset(names, paths, [view], boxes)
    training_fold.warn_of_absent(s.task, outside[s.task].to_numpy(), f"--valid-root {s.valid_root}")
    answers = engine.predict(networks, [[0]] * len(networks), photos, [s.task], study.compute)[
        s.task
    ]
    decided = ensemble.decide(s.task, ensemble.arithmetic(answers))
    scores = metrics.score(s.task, decided, outside[s.task].to_numpy())
    return (
        f"--valid-root, scored once by the ensemble of {plural(len(networks), 'checkpoint')}: "
        f"{scores.line()}"
    )


def estimate_cost(study: RunContext) -> list[str]:
    """One batch of training, and what it says of the whole run's time and disk."""
    s = study.settings
    fold = training_fold.prepare_fold(study, 0)
    own = s.batch_size // study.compute.world
    batches = dataset.EpochBatchSampler(fold.batches.indices[:own], own)
    alone = dataclasses.replace(study.compute, rank=0, world=1)
    seconds = 0.0
    for _ in range(2):  # the first batch pays for what happens once
        before = time.monotonic()
        loader = loading.make_loader(fold.training, batches, 0, study.compute.device)
        engine.train_one_epoch(fold.learner, fold.recipe, loader, fold.labels, s.task, alone, 0)
        seconds = time.monotonic() - before
    per_photo = seconds / len(batches.indices)
    # a validation pass has no backward
    people = len(study.table) - len(fold.rows) + len(fold.rows) / 3
    asked, folds = len(s.folds or study.folds), len(study.own_folds)
    told = plural(asked, "fold") + (
        f" ({folds} after another in each process)" if folds < asked else ""
    )
    size = sum(t.numel() * t.element_size() for t in fold.learner.model.state_dict().values())
    disk = size * s.save_top * s.cv / 2**30
    free = run_directory.free_disk_bytes(Path(s.save_path)) / 2**30
    return [
        f"dry run: one batch of {len(batches.indices)} took {seconds:.2f} s ({1 / per_photo:.1f} "
        "images/s)",
        f"the run: about {duration(per_photo * people * s.epochs * folds / study.compute.world)} "
        f"for {told} x {plural(s.epochs, 'epoch')}",
        f"disk: about {disk:.2f} GiB of checkpoints, {free:.1f} GiB free",
    ]
