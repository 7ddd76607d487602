#!/usr/bin/env python3
"""Turn trees of checkpoints into a submission: the best of each fold vote, with as many views as
asked for.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import config
from runtime.cli import run_script
from runtime.errors import plural, printable

if TYPE_CHECKING:
    import ensemble


def stored(
    settings: config.EnsembleSettings,
) -> tuple[str, ensemble.Probabilities, Path, list[str]]:
    """(name of the earlier prediction, its probabilities for this task and --top-k, its folder, no
    notes).
    """
    from inference import submission

    folder = Path(settings.from_probs or "")
    probs = submission.load_probabilities(folder).answering(settings.task)
    return (
        f"{folder.resolve().name}_again",
        probs.top(settings.top_k) if settings.top_k else probs,
        folder,
        [],
    )


def predicted(
    settings: config.EnsembleSettings,
) -> tuple[str, ensemble.Probabilities, Path, list[str]] | None:
    """(name of the trees, probabilities of their members, the tree that knows the task, what was
    said of the trees); of several processes that share the photographs, in the first.
    """
    from data import tables
    from inference import predictor, runs, submission
    from runtime import distributed

    found = runs.find_runs(settings.root, settings.top_k or 3, settings.task)
    views, transform = settings.tta or 1, settings.transform_type or "base"
    voters = [member for tree in found for member in tree.members]
    names, paths = tables.read_eval(settings.data_root)
    work = f"{plural(views, 'view')} ({transform}) of {plural(len(names), 'photograph')}"
    lines = [
        f"tree: {printable(tree.path)}: {plural(len(tree.members), 'member')} x {work}"
        for tree in found
    ]
    submission.read_truth(settings, names)  # refused before the long part, if it is to be refused
    home = next((tree for tree in found if tree.task in ("main", settings.task)), found[0])
    predictor.part_groups(voters, settings.task)
    lines += runs.mixture(found, settings.task) if len(found) > 1 else []
    with distributed.distributed() as who:
        if who.first:
            print(*lines, sep="\n", flush=True)
        probs = predictor.predict_images(
            voters, settings, transform, views, home.path, names, paths, who
        )
    return (runs.runs_title(found), probs, home.path, lines) if who.first else None


def main(argv: list[str] | None = None) -> int:
    settings = config.EnsembleSettings.parse(argv, "submit_ensemble.py", __doc__ or "").completed()

    import ensemble
    from inference import submission

    found = stored(settings) if settings.from_probs else predicted(settings)
    if found is None:
        return 0
    name, probs, source, notes = found
    truth = submission.read_truth(settings, probs.images)
    voted = ensemble.vote(settings.method, probs.task, probs.array, probs.weights)
    folder = submission.output_folder(settings.save_path, name, settings.task)
    submission.write_prediction(folder, voted, probs, truth, source, settings, notes)
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main, "submit_ensemble.py"))
