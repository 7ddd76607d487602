#!/usr/bin/env python3
"""Turn one checkpoint into a submission: a CSV with a row per evaluation photograph."""

from __future__ import annotations

import sys
from pathlib import Path

import config
from runtime.cli import run_script
from runtime.errors import DistInfo, UserError, printable


def main(argv: list[str] | None = None) -> int:
    settings = config.SingularSettings.parse(argv, "submit_singular.py", __doc__ or "").completed()

    import checkpoint
    import engine
    import ensemble
    from data import tables
    from inference import predictor, submission
    from runtime import distributed
    from runtime.files import check_writable

    task, model_type = settings.task, settings.model_type
    path = Path(settings.load_state_dict or predictor.find_best_checkpoint(task, model_type))
    print(f"checkpoint: {printable(path)}", flush=True)
    stored, info = checkpoint.load_described(path, model_type, task, mapped=False)
    if model_type not in (None, info.model):
        raise UserError(
            f"--model-type {model_type}: {path} holds a {info.model}; leave the option out"
        )
    member = predictor.Member(path.name, info, path, stored.weights)
    images, paths = tables.read_eval(settings.data_root)
    labels = submission.read_labels(settings.answers, images, task)
    predictor.part_groups([member], task)  # refused early, if it is to be refused
    check_writable(settings.save_path, "--save-path")
    request = predictor.PredictionRequest(
        task, settings.transform_type, 1, settings.boxes, settings.skip_bad_images
    )
    with distributed.explain_failures(settings.batch_size):
        compute = engine.make_compute(settings, settings.batch_size, DistInfo(), shared=True)
        probs = predictor.predict_images([member], request, images, paths, compute)

    predictions = ensemble.decide(task, ensemble.arithmetic(probs.array))
    fold_dir = path.absolute().parent
    run_name = f"{fold_dir.parent.name}_{fold_dir.name}"
    folder = submission.create_output_folder(settings.save_path, run_name, task)
    report = submission.ReportContext(fold_dir.parent, settings)
    submission.write_prediction(folder, probs, {"submission": predictions}, labels, report)
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main, "submit_singular.py"))
