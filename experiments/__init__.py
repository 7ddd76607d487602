"""Quality and honesty of scores. `python -m experiments.NAME --help` from the project's root."""
