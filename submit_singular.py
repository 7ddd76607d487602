#!/usr/bin/env python3
"""Turn one checkpoint into a submission: a CSV with a row per evaluation photograph."""

from __future__ import annotations

import sys
from pathlib import Path

import config
from runtime.cli import run_script
from runtime.errors import DistInfo, printable

MAX_SHOWN_IMAGES = 20  # whose predictions are printed too


def main(argv: list[str] | None = None) -> int:
    settings = config.SingularSettings.parse(argv, "submit_singular.py", __doc__ or "").completed()

    import engine
    import ensemble
    from data import tables
    from inference import members, submission
    from inference.predictor import PredictionRequest, Predictor, predicted_lines
    from runtime import distributed
    from runtime.files import check_writable

    task, model_type = settings.task, settings.model_type
    path = Path(settings.load_state_dict or members.find_best_checkpoint(task, model_type))
    print(f"checkpoint: {printable(path)}", flush=True)
    member = members.load_member(path, task, model_type)
    images, paths = tables.read_eval(settings.data_root)
    labels = submission.read_labels(settings.answers, images, task)
    members.part_groups([member], task)  # refused early, if it is to be refused
    check_writable(settings.save_path)
    request = PredictionRequest(
        task, settings.transform_type, 1, settings.boxes, settings.skip_bad_images
    )
    with distributed.explain_failures(settings.batch_size):
        compute = engine.make_compute(settings, settings.batch_size, DistInfo(), shared=True)
        predictor = Predictor([member], task, compute, settings.backend)
        probs = predictor.probabilities(request, images, paths)

    probabilities = ensemble.arithmetic(probs.array)
    predictions = ensemble.decide(task, probabilities)
    if len(images) <= MAX_SHOWN_IMAGES:
        print(*predicted_lines(task, images, probabilities), sep="\n")
    fold_dir = path.absolute().parent
    run_name = f"{fold_dir.parent.name}_{fold_dir.name}"
    folder = submission.create_output_folder(settings.save_path, run_name, task)
    path_of = dict(zip(images, paths, strict=True))
    report = submission.ReportContext(fold_dir.parent, settings, paths=path_of)
    submission.write_prediction(folder, probs, {"submission": predictions}, labels, report)
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main, "submit_singular.py"))
