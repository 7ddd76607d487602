#!/usr/bin/env python3
"""Train one model on one task, with folds in which no person is on both sides; keep each fold's
best checkpoints.
"""

from __future__ import annotations

import sys

import config
from runtime import cli
from runtime.errors import is_rank_zero


def main(argv: list[str] | None = None) -> int:
    asked = config.TrainSettings.parse(argv, "train.py", __doc__ or "")
    settings = asked.completed()
    cli.quiet = settings.quiet
    if settings.dry_run:
        cli.exit_when_reader_is_gone()
    if is_rank_zero():
        if settings.recipe:
            print(settings.explain_preset())
        if reason := asked.explain_lr():
            print(reason, flush=True)

    from runtime import distributed  # torch takes seconds: --help and refusals do without it
    from training import cross_validation, run, run_files

    remedy = " in a new run (--resume takes no other batch size)"
    with (
        distributed.distributed() as dist,
        distributed.explain_failures(settings.batch_size, remedy),
    ):
        context = distributed.on_all_ranks(dist, lambda: run.prepare_run(settings, dist))
        if dist.is_rank0:
            print(*run_files.banner(context), sep="\n", flush=True)
        if not settings.dry_run:
            return cross_validation.train_all_folds(context)
        if dist.is_rank0:
            print(*cross_validation.estimate_cost(context), sep="\n")
        return 0


if __name__ == "__main__":
    sys.exit(cli.run_script(main, "train.py"))
