"""Seeds of random draws."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from parts that print alike: the same on every machine, in every process."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@contextlib.contextmanager
def seeded(*parts: object) -> Iterator[None]:
    """Seed torch's CPU generator inside the block and restore its state after.

    torchvision's transforms draw from that global generator. Without the restoration, dropout would
    depend on how many photographs the main process happened to read.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(*parts))
        yield
