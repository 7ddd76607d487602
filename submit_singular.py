#!/usr/bin/env python3
"""Turn one checkpoint into a submission: a CSV with a row per evaluation photograph."""

from __future__ import annotations

import sys
from pathlib import Path

import config
from runtime.cli import run_script
from runtime.errors import UserError, printable


def main(argv: list[str] | None = None) -> int:
    settings = config.SingularSettings.parse(argv, "submit_singular.py", __doc__ or "").completed()

    import checkpoint
    import ensemble
    from data import tables
    from inference import predictor, submission

    path = Path(
        settings.load_state_dict
        or predictor.find_best_checkpoint(settings.task, settings.model_type)
    )
    print(f"checkpoint: {printable(path)}", flush=True)
    found, info = checkpoint.load_described(path, settings.model_type, settings.task, mapped=False)
    if settings.model_type not in (None, info.model):
        raise UserError(
            f"--model-type {settings.model_type}: {path} holds a {info.model}; leave the option out"
        )
    member = predictor.Member(path.name, info, found)
    names, paths = tables.read_eval(settings.data_root)
    truth = submission.read_truth(settings, names)
    tree = path.absolute().parent.parent
    probs = predictor.predict_images(
        [member], settings, settings.transform_type, 1, tree, names, paths
    )
    answers = ensemble.decide(probs.task, ensemble.arithmetic(probs.array))
    folder = submission.output_folder(
        settings.save_path, f"{tree.name}_{path.absolute().parent.name}", settings.task
    )
    submission.write_prediction(folder, {"submission": answers}, probs, truth, tree, settings)
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main, "submit_singular.py"))
