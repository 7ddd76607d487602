"""The drawn people: the competition's layout, the same bytes again, nothing overwritten."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from data import tables
from labels import age_group
from tests.helpers import support
from tools import sample_data


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sample") / "data"
    assert sample_data.main(["--out", str(out), "--people", "6", "--eval-people", "2"]) == 0
    return out


def test_the_layout_is_the_competitions(drawn: Path) -> None:
    table = tables.read_train(drawn / "train")
    assert len(table) == 42
    assert set(zip(table["gender"], table["ageg"], strict=True)) == {
        (g, a) for g in range(2) for a in range(3)
    }
    names, paths = tables.read_eval(str(drawn / "eval"))
    assert names == sorted(names)
    assert all(re.fullmatch(r"[0-9a-f]{40}\.jpg", name) for name in names)
    truth = tables.read_labels(str(drawn / "eval" / "answers.csv"), names, "main")
    assert Counter(truth // 6) == {0: 10, 1: 2, 2: 2}
    years = tables.read_labels(str(drawn / "eval" / "answers.csv"), names, "age")
    assert [age_group(age) for age in years] == (truth % 3).tolist()
    assert set(Counter(years).values()) <= {7, 14}
    assert {row[1] for row in support.read_rows(drawn / "eval" / "info.csv")[1:]} == {"0"}
    for path in [*paths, *table["path"]]:
        with Image.open(path) as photo:
            assert photo.size == (384, 512)
            assert not photo.getexif()


def test_the_same_arguments_draw_the_same_bytes(drawn: Path, tmp_path: Path) -> None:
    assert (
        sample_data.main(["--out", str(tmp_path / "again"), "--people", "6", "--eval-people", "2"])
        == 0
    )
    files = sorted(p.relative_to(drawn) for p in drawn.rglob("*") if p.is_file())
    assert files == sorted(
        p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*") if p.is_file()
    )
    assert all((drawn / f).read_bytes() == (tmp_path / "again" / f).read_bytes() for f in files)


def test_what_is_there_is_left_alone(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sample_data.main(["--out", str(drawn), "--people", "6", "--eval-people", "2"]) == 0
    assert "already" in capsys.readouterr().out
    (tmp_path / "mine.txt").write_text("mine")
    for words in (
        ["--out", str(drawn), "--people", "7"],
        ["--out", str(tmp_path)],
        ["--out", str(tmp_path / "mine.txt")],
        ["--people", "0"],
    ):
        with pytest.raises(SystemExit) as caught:
            sample_data.main(words)
        assert caught.value.code == 2
        err = capsys.readouterr().err
        assert err.startswith("sample_data.py: error: ")
        assert err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
