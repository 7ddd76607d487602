"""Speed, memory and growth. `python -m benchmarks.NAME --help` from the project's root."""
