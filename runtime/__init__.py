"""What serves every room and imports none of them."""

import os

# Read when torch loads. By default a thread that waits for the others spins for milliseconds, and
# where anything else runs, the loader's processes or other people's, it takes the processor from
# those that it waits for: a step of 0.8 s takes 6 s.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
