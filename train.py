#!/usr/bin/env python3
"""Train one model on one task, with folds in which no person is on both sides; keep each fold's
best checkpoints.
"""

from __future__ import annotations

import sys

import config
from runtime.cli import exit_when_reader_is_gone, run_script
from runtime.errors import is_rank_zero


def main(argv: list[str] | None = None) -> int:
    asked = config.TrainSettings.parse(argv, "train.py", __doc__ or "")
    settings = asked.completed()
    if settings.dry_run:
        exit_when_reader_is_gone()
    if is_rank_zero():
        if settings.recipe:
            print(settings.explain_preset())
        print(asked.explain_lr(), flush=True)

    from training import cross_validation

    return cross_validation.train_all_folds(settings)


if __name__ == "__main__":
    sys.exit(run_script(main, "train.py"))
