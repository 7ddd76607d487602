"""A short run of fuzz_readers.py; the long one is by hand."""

from __future__ import annotations

import faulthandler
from pathlib import Path

import pytest

from tests.helpers import fuzz_readers

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


def test_what_the_fuzzer_found_stays_refused(tmp_path: Path) -> None:
    """Each ended in a traceback, or in a line of thousands of characters."""
    found = {reader.name: reader for reader in fuzz_readers.readers(tmp_path)}
    (oof,), long = found["oof.csv"].valid, b"[" * 100_000
    for name, data in (
        ("oof.csv", oof.replace(b",0.0555", b"," + long, 1)),
        ("oof.csv", oof.replace(b"p1,0,", b"p1,nan,", 1)),
        ("label fixes", b"path,column,value\n" + long + b",gender,male\n"),
        ("label fixes", long + b",column,value\np1,gender,male\n"),
    ):
        assert data != oof
        assert fuzz_readers.judge(found[name].check, data) == "refused", (name, data[:60])
