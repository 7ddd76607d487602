"""Training: a run, its folds, and what each goes on from."""
