"""Speed, memory and growth. `python -m benchmarks.NAME --help` from the project's root."""

import utils  # noqa: F401  (before torch, whose threads it sets up)
