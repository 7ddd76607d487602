"""Damage is noticed in all four kinds of file: a short run of tests/helpers/damage.py."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import torch

import checkpoint
from data import weight_files
from runtime import files
from runtime.errors import UserError
from runtime.files import load_npz
from tests.helpers import damage
from tests.test_golden import FINISHED, GOLDEN
from training import fold_state

KINDS = ("state.pt", "a.pth", "validation.npz", "probs.npz")


@pytest.mark.parametrize("name", KINDS)
def test_a_flipped_bit_is_refused_or_changes_nothing(tmp_path: Path, name: str) -> None:
    (kind,) = [kind for kind in damage.whole_files(tmp_path) if kind.path.name == name]
    bits = damage.sampled_bits(kind.path, 150, random.Random(1))
    verdicts = dict(damage.flip(kind, bits))
    assert set(verdicts.values()) == {"refused", "same"}
    content = set(range(8 * kind.path.stat().st_size)) - set(damage.header_bits(kind.path))
    assert all(verdicts[bit] == "refused" for bit in content & verdicts.keys())


def test_without_the_checksums_other_values_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (files, weight_files):
        monkeypatch.setattr(module, "check_members", lambda *_: None)
    kind = damage.whole_files(tmp_path)[1]
    bits = damage.sampled_bits(kind.path, 40, random.Random(1))
    assert [verdict for _, verdict in damage.flip(kind, bits)].count("other") > 10


def test_a_part_that_torch_would_take_for_a_folder_is_refused(tmp_path: Path) -> None:
    """Its tensor would be whatever lay in memory before."""
    kind = damage.whole_files(tmp_path)[1]
    data = bytearray(kind.path.read_bytes())
    entry = data.index(b"archive/data/0", data.index(b"PK\1\2")) - 46
    assert data[entry : entry + 4] == b"PK\1\2"
    data[entry + 38] |= 0x10
    kind.path.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.pth: .*its directory does not fit its content"):
        kind.load()


def test_a_directory_of_fewer_parts_than_its_end_counts_is_refused(tmp_path: Path) -> None:
    kind = damage.whole_files(tmp_path)[3]
    data = bytearray(kind.path.read_bytes())
    data[data.rindex(b"PK\5\6") + 10] += 1
    kind.path.write_bytes(data)
    with pytest.raises(UserError, match=r"probs\.npz: damaged .its directory does not fit"):
        kind.load()


def test_an_array_that_a_damaged_header_makes_smaller_is_refused(tmp_path: Path) -> None:
    """numpy reads no further than the array goes, and then compares nothing."""
    kind = damage.whole_files(tmp_path)[3]
    data = kind.path.read_bytes()
    assert data.count(b"(2, 3, 4, 18)") == 1
    kind.path.write_bytes(data.replace(b"(2, 3, 4, 18)", b"(2, 1, 4, 18)"))
    with pytest.raises(UserError, match="probabilities.npy in it does not match its checksum"):
        kind.load()


def test_a_damaged_state_says_what_to_remove(tmp_path: Path) -> None:
    kind = damage.whole_files(tmp_path)[0]
    data = kind.path.read_bytes()
    kind.path.write_bytes(data.replace(b"exp_avg", b"exp_awg", 1))
    with pytest.raises(UserError, match=f"checksum.*; remove {tmp_path} to train the fold again"):
        kind.load()


def test_older_files_are_covered_and_those_without_checksums_are_read(tmp_path: Path) -> None:
    for path in (*FINISHED.rglob("*.pth"), *(GOLDEN / "stopped").rglob("*.p*t*")):
        copied = Path(shutil.copy(path, tmp_path / "a.pth"))
        weight_files.safe_load(copied)
        data = bytearray(copied.read_bytes())
        data[len(data) // 2] ^= 1  # within a tensor, which fills most of the file
        copied.write_bytes(data)
        with pytest.raises(UserError, match="does not match its checksum"):
            weight_files.safe_load(copied)
    weights, path = {"a": torch.arange(1000.0)}, tmp_path / "unchecked.pth"
    torch.serialization.set_crc32_options(False)
    torch.save(weights, path)
    torch.serialization.set_crc32_options(True)
    for mapped in (False, True):
        assert torch.equal(checkpoint.load_checkpoint(path, mapped).weights["a"], weights["a"])
    assert load_npz(GOLDEN / "prediction" / "probs.npz", "") is not None
    assert fold_state.load_validation(FINISHED / "fold00", "main") is not None
