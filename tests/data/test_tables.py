"""Tables as Excel and others write them, and folders named in another way than the README does."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

import submit_singular
import train
from data import csv_tables, label_fixes, tables
from runtime.errors import UserError
from tests.helpers import support

HEAD = "id,gender,race,age,path"
ROWS = ("1,female,Asian,20,000001_female_Asian_20", "2,male,Asian,61,000002_male_Asian_61")
PEOPLE = [("000001_female_Asian_20", 1, 20.0), ("000002_male_Asian_61", 0, 61.0)]


def people(folder: Path, *lines: str) -> list[tuple[str, int, float]]:
    path = folder / "train.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [(p, int(g), float(y)) for p, g, y in tables.read_people(path).itertuples(index=False)]


# --- Excel


@pytest.mark.parametrize(
    ("head", "first", "second"),
    [
        (",note,extra", ",x", ""),  # trailing empty cells are not written in all rows
        ("", ",,", ",,,,"),  # cells that only look filled
        (",,", ",,", ",remark,"),  # a column without a name
        ("", ",,remark", ""),  # a remark beside the table, with an empty cell between
        (",,,", "", ",,,,,remark"),
    ],
)
def test_rows_as_excel_writes_them_are_read_right(
    tmp_path: Path, head: str, first: str, second: str
) -> None:
    """(16.12)"""
    assert people(tmp_path, HEAD + head, ROWS[0] + first, ROWS[1] + second) == PEOPLE


@pytest.mark.parametrize(
    ("row", "fields"),
    [("3,male,Asian,20", 4), ("3,male,Asian,Chinese,20,x", 6), ("3,male,Asian,20,x,5,,", 8)],
)
def test_a_row_whose_cells_are_missing_or_moved_is_still_refused(
    tmp_path: Path, row: str, fields: int
) -> None:
    """(16.12)"""
    with pytest.raises(
        UserError, match=f"train.csv: row 4: {fields} fields, the header has 5; correct the row"
    ):
        people(tmp_path, HEAD, *ROWS, row)


@pytest.mark.parametrize(
    "first", ["sep={}", "SEP={}", '"sep={}"', "\ufeffsep={}", "sep={}\r", "sep={0}{0}{0}"]
)
@pytest.mark.parametrize("delimiter", [";", ",", "\t", "|"])
def test_excels_line_on_the_separator_is_taken(tmp_path: Path, first: str, delimiter: str) -> None:
    """(16.12)"""
    lines = [line.replace(",", delimiter) for line in (HEAD, *ROWS)]
    assert people(tmp_path, first.format(delimiter), *lines) == PEOPLE
    with pytest.raises(
        UserError, match="row 4: gender 'man'"
    ):  # counted as Excel does, which does not show that line
        people(
            tmp_path,
            first.format(delimiter),
            *lines,
            delimiter.join(["3", "man", "Asian", "20", "x"]),
        )


def test_a_header_that_contradicts_the_separators_line_is_believed(tmp_path: Path) -> None:
    """(16.12)"""
    assert people(tmp_path, "sep=;", HEAD, *ROWS) == PEOPLE


def test_every_table_is_read_as_excel_writes_it(train_root: Path, tmp_path: Path) -> None:
    """(16.12)"""
    root = support.make_eval(tmp_path / "eval", 3)
    names = tables.read_eval(str(root))[0]
    (root / "info.csv").write_text(
        f"sep=;\nImageID;ans;note\n{names[2]}\n{names[0]};0;\n{names[1]};0;x;;\n"
    )
    assert tables.read_eval(str(root))[0] == [names[2], names[0], names[1]]
    (root / "answers.csv").write_text(
        f"sep=;\nImageID;ans;age\n{names[2]};1\n{names[0]};2;;\n{names[1]};3;20;;x\n"
    )
    assert tables.read_labels(str(root / "answers.csv"), names, "main").tolist() == [2, 3, 1]
    boxes = tmp_path / "boxes.csv"
    boxes.write_text(f"sep=\t\nfile\tleft\ttop\tright\tbottom\tnote\n{names[0]}\t1\t2\t3\t4\n")
    assert tables.read_boxes(
        str(boxes), names, [str(root / "images" / name) for name in names]
    ) == {names[0]: (1, 2, 3, 4)}
    fixes = tmp_path / "fixes.csv"
    fixes.write_text("sep=;\npath;column;value;note\n000001_female_Asian_20;gender;male\n")
    assert label_fixes.apply_fixes(tables.read_train(train_root), fixes)[1] == {"gender": 1}


@pytest.mark.parametrize(
    "shape", ["one line", "one header", "one quoted cell", "lines without end"]
)
def test_a_table_of_absurd_length_is_refused_in_little_memory(tmp_path: Path, shape: str) -> None:
    """(16.31)"""
    size = 20_000_000
    text = {
        "one line": f"{HEAD}\n{'x' * size}\n",
        "one header": "id," * (size // 3),
        "one quoted cell": f'{HEAD}\n1,"' + "line\n" * (size // 5) + '",Asian,20,x\n',
        "lines without end": f"{HEAD}\n" + ",\n" * (size // 20),
    }[shape]
    path = tmp_path / "train.csv"
    path.write_text(text)
    size = len(text)
    del text
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"train\.csv: .*; "):
            tables.read_people(path)
        assert tracemalloc.get_traced_memory()[1] < 2 * size
    finally:
        tracemalloc.stop()


def test_a_table_of_endless_rows_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(16.31)"""
    monkeypatch.setattr(csv_tables, "MAX_ROWS", 2, raising=False)
    assert people(tmp_path, HEAD, *ROWS) == PEOPLE
    with pytest.raises(UserError, match="row 4: more than 2 rows"):
        people(tmp_path, HEAD, *ROWS, ROWS[0])


# --- folders


@pytest.mark.parametrize("below", ["", "images"])
def test_the_table_is_found_from_inside_the_folder(
    train_root: Path,
    below: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """(16.20)"""
    table = tables.read_train(train_root)
    capsys.readouterr()
    monkeypatch.chdir(train_root / below)
    for root in (".", "../images" if below else f"../{train_root.name}"):
        assert tables.read_train(root)["person"].tolist() == table["person"].tolist()
        assert "no train.csv" not in capsys.readouterr().err
    monkeypatch.chdir(next((train_root / "images").glob("0*")))
    tables.read_train("..")
    assert "no train.csv" not in capsys.readouterr().err
    monkeypatch.chdir(train_root / below)
    words = ["--train-root", ".", "--save-path", str(tmp_path), *support.FAST, "--dry-run"]
    assert train.main(words) == 0
    assert "no train.csv" not in capsys.readouterr().err


@pytest.mark.parametrize("inside", [".", "images", "images/more"])
def test_info_csv_is_found_from_inside_the_folder(
    eval_root: Path,
    inside: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """(16.20)"""
    order = [row[0] for row in support.read_rows(eval_root / "info.csv")[1:]]
    assert order != sorted(order)
    (eval_root / "images" / "more").mkdir(exist_ok=True)
    monkeypatch.chdir(eval_root / inside)
    roots = {
        ".": [".", "images", "./images/"],
        "images": [".", "..", "./"],
        "images/more": ["..", "../..", "../../images"],
    }
    for root in roots[inside]:
        assert tables.read_eval(root)[0] == order, root
    (eval_root / "images" / "more").rmdir()


def test_a_missing_info_csv_is_stated_with_the_order_of_the_answers(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """(16.20)"""
    root = support.make_eval(tmp_path / "eval", 4, answers=False)
    (root / "info.csv").unlink()
    words = [
        "--load-state-dict",
        str(sorted(tree.glob("fold00/*.pth"))[0]),
        "--data-root",
        str(root),
    ]
    assert (
        submit_singular.main([*words, "--save-path", str(tmp_path / "out"), *support.FAST[4:]]) == 0
    )
    lines = [line for line in capsys.readouterr().err.splitlines() if "no info.csv" in line]
    assert len(lines) == 1
    assert "4 photographs are answered in the order of their names" in lines[0]
    rows = support.read_rows(next((tmp_path / "out").glob("*/submission.csv")))[1:]
    assert [row[0] for row in rows] == sorted(path.name for path in (root / "images").iterdir())


@pytest.mark.parametrize("above", ["", "data", "input/data"])
def test_the_folder_above_the_right_one_is_answered_with_the_right_one(
    tmp_path: Path, above: str
) -> None:
    """(16, small ones)"""
    support.make_train(tmp_path / above / "train", support.PEOPLE[:2])
    support.make_eval(tmp_path / above / "eval", 2)
    with pytest.raises(
        UserError, match=rf"no photographs in it; did you mean {tmp_path / above / 'train'}\?"
    ) as caught:
        train.main(
            ["--train-root", str(tmp_path), "--save-path", str(tmp_path / "saved"), *support.FAST]
        )
    assert caught.value.code == 2
    with pytest.raises(
        UserError, match=rf"no photographs in it, .*; did you mean {tmp_path / above / 'eval'}\?"
    ):
        tables.read_eval(str(tmp_path))
