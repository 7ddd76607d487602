#!/usr/bin/env python3
"""Turn runs of train.py into a submission: the best checkpoints of each fold vote, with as many
views as asked for.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import config
from runtime.cli import run_script
from runtime.errors import is_rank_zero, plural, printable

if TYPE_CHECKING:
    import ensemble
    from inference import submission


def predict(
    settings: config.EnsembleSettings,
) -> tuple[str, ensemble.Probabilities, submission.ReportContext]:
    """(title of the runs, probabilities of their members, what the report shows beside them)."""
    import engine
    from data import tables
    from inference import members, runs, submission
    from inference.predictor import PredictionRequest, Predictor
    from runtime import distributed
    from runtime.files import check_writable

    task, views, transform = settings.task, settings.tta or 1, settings.transform_type or "base"
    voting = runs.load_runs(settings.root, settings.top_k or 3, task)
    voters = [member for run in voting for member in run.members]
    images, paths = tables.read_eval(settings.data_root)
    work = f"{plural(views, 'view')} ({transform}) of {plural(len(images), 'photograph')}"
    counts = [(printable(run.path), plural(len(run.members), "member")) for run in voting]
    notes = [f"run: {path}: {count} x {work}" for path, count in counts]
    submission.read_labels(settings.answers, images, task)  # refused early, if at all
    members.part_groups(voters, task)
    notes += runs.mixture_lines(voting, task) if len(voting) > 1 else []
    request = PredictionRequest(task, transform, views, settings.boxes, settings.skip_bad_images)
    with distributed.distributed() as dist:
        if dist.is_rank0:
            print(*notes, sep="\n", flush=True)
        check_writable(settings.save_path)
        with distributed.explain_failures(settings.batch_size):
            compute = engine.make_compute(settings, settings.batch_size, dist, shared=True)
            predictor = Predictor(voters, task, compute, settings.backend)
            probs = predictor.probabilities(request, images, paths)
    run_dir, path_of = members.labels_run_dir(voters, task), dict(zip(images, paths, strict=True))
    report = submission.ReportContext(run_dir, settings, notes, path_of)
    return runs.runs_title(voting), probs, report


def main(argv: list[str] | None = None) -> int:
    settings = config.EnsembleSettings.parse(argv, "submit_ensemble.py", __doc__ or "").completed()

    import ensemble
    from inference import submission

    report = None
    if settings.from_probs:
        earlier = Path(settings.from_probs)
        probs = submission.load_probabilities(earlier).for_task(settings.task)
        probs = probs.top(settings.top_k) if settings.top_k else probs
        title = submission.revote_title(earlier.resolve().name)
    else:
        title, probs, report = predict(settings)
    if is_rank_zero():
        labels = submission.read_labels(settings.answers, probs.images, settings.task)
        votes = ensemble.vote(settings.method, probs.task, probs.array, probs.weights)
        folder = submission.create_output_folder(settings.save_path, title, settings.task)
        submission.write_prediction(folder, probs, votes, labels, report)
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main, "submit_ensemble.py"))
