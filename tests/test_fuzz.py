"""A short run of fuzz_readers.py; the long one is by hand."""

from __future__ import annotations

import faulthandler
from pathlib import Path

import fuzz_readers
import pytest

CASES = {"image": 120, "checkpoint": 60}  # of the slower readers


@pytest.mark.filterwarnings("ignore")
def test_every_reader_reads_rightly_or_refuses_in_one_line(tmp_path: Path) -> None:
    faulthandler.enable()
    for reader in fuzz_readers.readers(tmp_path):
        verdicts, unclean = fuzz_readers.fuzz(reader, CASES.get(reader.name, 200), seed=1)
        assert not unclean, unclean[:3]
        assert verdicts["refused"] + verdicts["read"] == verdicts.total() > 0


def test_the_fuzzer_tells_what_is_unclean(tmp_path: Path) -> None:
    def fragile(data: bytes) -> None:
        raise KeyError("x")

    verdicts, unclean = fuzz_readers.fuzz(fuzz_readers.Reader("fragile", [b"abc"], fragile), 10, 0)
    assert verdicts["unclean"] == 10
    assert len(unclean) == 11
