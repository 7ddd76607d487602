"""Ideas on trial, as entries of the project's registries: `register` adds them to this process alone.

What wins in ablation.py moves into the project's own rooms; what does not is removed from here, its row in the table stays.
"""

from __future__ import annotations

import config

YEARS = 100  # bins of the distribution over ages, one for each year


def register() -> None:
    """Make every candidate a choice of the command line, here."""
    config.TASKS["year"] = config.Task(
        lambda m, g, y: min(max(int(y + 0.5), 0), YEARS - 1), tuple(map(str, range(YEARS))), "whole years, as classes"
    )
    config.MODELS["Factorised"] = config.Model(
        "candidate_parts:Factorised", "efficientnet-b3", heads=("mask", "gender", "year", "main"),
        help="mask, gender and a distribution over years, whose product answers main",
    )  # fmt: skip
    config.LOSSES["factorloss"] = config.Loss("candidate_parts:FactorLoss", False, "label smoothing; ages by a soft target")
    for smoothing in (0.0, 0.1):
        target = f"candidate_parts:smoothing{smoothing * 10:.0f}"
        config.LOSSES[f"smoothing{smoothing:g}"] = config.Loss(target, False, "less label smoothing")
    config.LOSSES["logitadjusted"] = config.Loss("candidate_parts:LogitAdjusted", False, "classes as if they were alike frequent")
    config.LOSSES["softf1"] = config.Loss("candidate_parts:SoftF1", False, "and one minus the batch's soft macro F1")
    config.OPTIMIZERS["adamw"] = config.Optimizer("candidate_parts:adamw", 0.001, 0.005, 0.05, "AdamW")
    for name, text in (
        ("face_flip", "the face, moved and mirrored"), ("face_resized", "and scaled"), ("face_strong", "and RandAugment"),
        ("tta_flip", "as tta, and mirrored"),
    ):  # fmt: skip
        sees = "the middle 384 pixels" if name == "tta_flip" else "the face"
        config.TRANSFORMS[name] = config.Transform(f"candidate_parts:{name}", sees, True, text)
