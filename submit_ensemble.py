#!/usr/bin/env python3
"""Turn a tree of checkpoints into a submission: the best of each fold vote, with as many views as asked for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import config
import utils

if TYPE_CHECKING:
    import ensemble


def stored(settings: config.EnsembleSettings) -> tuple[str, ensemble.Probabilities, Path]:
    """(name of the earlier prediction, its probabilities for this task and --top-k, its folder)."""
    import submission

    folder = Path(settings.from_probs or "")
    probs = submission.load(folder).answering(settings.task)
    return f"{folder.resolve().name}_again", probs.top(settings.top_k) if settings.top_k else probs, folder


def predicted(settings: config.EnsembleSettings) -> tuple[str, ensemble.Probabilities, Path] | None:
    """(name of the tree, probabilities of its members, the tree); of several processes that share the photographs, in the
    first."""
    import checkpoint
    import dataset
    import members
    import processes
    import submission

    who = processes.from_environment()
    tree = checkpoint.find_tree(settings.root)
    views, transform = settings.tta or 1, settings.transform_type or "base"
    voters = members.members_of(tree, settings.top_k or 3)
    names, paths = dataset.read_eval(settings.data_root)
    passes = f"{len(voters)} members x {views} views ({transform})"
    if who.first:
        print(f"tree: {utils.printable(tree)}: {passes} of {len(names)} photographs", flush=True)
    submission.truth_of(settings, names)  # refused before the long part, if it is to be refused
    submission.rule_of(settings, tree)
    probs = members.answer(voters, settings, transform, views, tree, names, paths, who)
    processes.leave(who)
    return (tree.resolve().name, probs, tree) if who.first else None


def main(argv: list[str] | None = None) -> int:
    settings = config.parse(config.EnsembleSettings, argv, "submit_ensemble.py", __doc__ or "").completed()

    import ensemble
    import submission

    found = stored(settings) if settings.from_probs else predicted(settings)
    if found is None:
        return 0
    name, probs, source = found
    truth = submission.truth_of(settings, probs.images)
    voted = ensemble.vote(settings.method, probs.task, probs.array, probs.weights, submission.rule_of(settings, source))
    folder = submission.output_folder(settings.save_path, name, settings.task)
    submission.write_prediction(folder, voted, probs, truth, source)
    return 0


if __name__ == "__main__":
    sys.exit(utils.run_script(main, "submit_ensemble.py"))
