"""Bad photographs, bad tables, untrusted names: each is read right or refused in one line that says
what to do.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import multiprocessing
import os
import re
import shutil
import struct
import subprocess
import sys
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import augmentation
import checkpoint
import config
import dataset
import ensemble
import run_directory
import submit_ensemble
import submit_singular
import train
from data import images, label_fixes, tables
from data.csv_tables import csv_cell
from inference import predictor, submission
from labels import TASKS
from reporting import label_issues, summary
from runtime import loading
from runtime.cli import run_script
from runtime.errors import UserError
from tests.helpers import fuzz_readers, support
from training import fold_state
from training import run as training_run


def encoded(image: Image.Image, kind: str, **save: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **save)
    return buffer.getvalue()


def photo(size: tuple[int, int] = (40, 56)) -> Image.Image:
    small = np.random.RandomState(0).randint(0, 256, (7, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def read(path: Path, data: bytes | None = None) -> Image.Image:
    if data is not None:
        path.write_bytes(data)
    return images.read_image(str(path))


def refused(path: Path, match: str = "cannot be read as a photograph") -> str:
    with pytest.raises(UserError, match=match) as caught:
        images.read_image(str(path))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- bad photographs


@pytest.mark.parametrize(
    ("kind", "save"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"subsampling": 0, "optimize": True}),
        ("PNG", {}),
    ],
)
def test_a_photograph_cut_off_anywhere_is_refused(
    tmp_path: Path, kind: str, save: dict[str, object]
) -> None:
    whole, path = encoded(photo((16, 24)), kind, **save), tmp_path / "cut.jpg"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        refused(path)
        if length > len(whole) - 30:
            assert images.inspect_image(str(path))[0], "the quick check must see it too"
    assert read(path, whole).size == (16, 24)
    assert not images.inspect_image(str(path))[0]


def test_a_cut_jpeg_filled_up_with_zeros_or_holding_a_whole_thumbnail_is_refused(
    tmp_path: Path,
) -> None:
    thumbnail = encoded(photo((8, 8)), "JPEG")
    exif = Image.Exif()
    exif[0x9286] = thumbnail  # its own end marker stands before the picture's first scan
    whole = encoded(photo(), "JPEG", exif=exif)
    path = tmp_path / "cut.jpg"
    for data in (whole[:-2], whole[: len(whole) * 2 // 3] + bytes(len(whole) // 3)):
        path.write_bytes(data)
        refused(path)
        assert images.inspect_image(str(path))[0]
    assert read(path, whole + b"\0\0 what a telephone appends").size == (40, 56)


@pytest.mark.parametrize(
    "data",
    [b"", b"no picture, only text\n", b"\xff\xd8\xff", b"GIF89a", b"%!PS-Adobe-3.0 EPSF-3.0\n"],
)
def test_what_is_no_picture_is_refused_by_name_before_and_while_reading(
    tmp_path: Path, data: bytes
) -> None:
    path = tmp_path / "mask1.jpg"
    path.write_bytes(data)
    refused(path)
    assert list(images.check_images([str(path)])) == [str(path)]


def test_the_decoders_own_lines_do_not_reach_the_terminal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, three = encoded(photo(), "TIFF"), struct.pack("<HHIH", 277, 3, 1, 3)  # samples per pixel
    assert three in whole
    (tmp_path / "a.jpg").write_bytes(whole.replace(three, struct.pack("<HHIH", 277, 3, 1, 279)))
    refused(tmp_path / "a.jpg")
    assert not caplog.records


@pytest.mark.parametrize("size", [(20000, 20000), (1, 4000), (4000, 1)])
def test_a_bomb_is_refused_with_its_size_before_it_is_decoded(
    tmp_path: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    header = bytearray(encoded(Image.new("1", (1, 1)), "PNG"))
    header[16:24] = size[0].to_bytes(4, "big") + size[1].to_bytes(4, "big")
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    path = tmp_path / "bomb.png"
    path.write_bytes(header)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    refused(path, f"{size[0]}x{size[1]}")


def test_every_mode_becomes_the_rgb_that_a_viewer_shows(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    deep = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    assert (
        np.abs(
            np.asarray(read(path, encoded(Image.fromarray(deep), "PNG")))[:, :, 0].astype(int)
            - deep // 257
        ).max()
        <= 1
    )
    wide = Image.fromarray(np.array([[0, 32768, 10**6, -5]], np.int32))
    assert np.asarray(read(path, encoded(wide, "TIFF")))[0, :, 0].tolist() == [0, 128, 255, 0]
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 200, 10, 20])
    assert read(path, encoded(palette, "PNG")).getpixel((0, 0)) == (200, 10, 20)
    assert read(path, encoded(palette, "PNG", transparency=1)).getpixel((0, 0)) == (255, 255, 255)
    assert read(path, encoded(Image.new("LA", (4, 4), (0, 0)), "PNG")).getpixel((0, 0)) == (
        255,
        255,
        255,
    )
    assert read(path, encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 128)), "PNG")).getpixel(
        (0, 0)
    ) == (255, 127, 127)
    assert read(path, encoded(Image.new("L", (4, 4), 77), "PNG")).getpixel((0, 0)) == (77, 77, 77)
    assert read(path, encoded(Image.new("1", (4, 4), 1), "PNG")).getpixel((0, 0)) == (255, 255, 255)
    cmyk = read(
        path, encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95)
    ).getpixel((4, 4))
    assert cmyk[0] > 230  # type: ignore[index]
    assert max(cmyk[1:]) < 30  # type: ignore[index]
    assert read(path, encoded(photo((1, 1)), "PNG")).size == (1, 1)
    path.write_bytes(encoded(Image.new("F", (4, 4)), "TIFF"))
    refused(path, "8 bits")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_every_exif_orientation_is_made_upright(
    tmp_path: Path, orientation: int, kind: str
) -> None:
    upright = Image.new("RGB", (64, 32), "black")
    upright.paste("red", (0, 0, 32, 16))
    # Transpose's inverse of each
    stored = {1: [], 2: [0], 3: [3], 4: [1], 5: [5], 6: [2], 7: [6], 8: [4]}[orientation]
    turned = upright
    for turn in stored:
        turned = turned.transpose(Image.Transpose(turn))
    exif = Image.Exif()
    exif[0x0112] = orientation
    seen = read(tmp_path / "turned.jpg", encoded(turned, kind, exif=exif))
    assert seen.size == (64, 32)
    assert seen.getpixel((8, 4))[0] > 200  # type: ignore[index]
    assert max(seen.getpixel(p)[0] for p in ((50, 4), (8, 28), (50, 28))) < 50  # type: ignore[index]


def test_damaged_exif_does_not_cost_the_photograph(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    data = encoded(photo(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12\0\x09")
    assert read(tmp_path / "a.jpg", data).size == (40, 56)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_picture_is_read_whatever_the_extension(
    tmp_path: Path, kind: str
) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    seen = read(
        tmp_path / "moving.jpg", encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    )
    assert seen.getpixel((4, 4))[0] > 240  # type: ignore[index]
    assert seen.getpixel((4, 4))[2] < 15  # type: ignore[index]


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")  # a reader that opened it would wait for ever
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "nowhere.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "self.jpg").symlink_to("self.jpg")
    names = ["pipe.jpg", "folder.jpg", "nowhere.jpg", "self.jpg", "vanished.jpg"]
    for name in names:
        refused(tmp_path / name)
    found = images.check_images([str(tmp_path / name) for name in names])
    assert [Path(path).name for path in found] == names
    assert found[str(tmp_path / "pipe.jpg")] == "no regular file"


def test_a_file_without_permission_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "locked.jpg"
    path.write_bytes(encoded(photo(), "JPEG"))
    path.chmod(0)
    if os.access(path, os.R_OK):  # root may read everything
        plain = os.open

        def no_entry(name: str, *rest: int) -> int:
            if str(name) == str(path):
                raise PermissionError(13, "Permission denied", name)
            return plain(name, *rest)

        monkeypatch.setattr(os, "open", no_entry)
    refused(path, "Permission denied")


# --- the check before the first epoch


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return support.make_train(tmp_path / "train", support.PEOPLE[:6], junk=False)


def run(root: Path, saved: Path, *words: str) -> int:
    return train.main(
        [
            "--train-root",
            str(root),
            "--save-path",
            str(saved),
            "--epochs",
            "1",
            "--cv",
            "2",
            "--batch-size",
            "8",
            *support.FAST,
            *words,
        ]
    )


def damage(root: Path, person: int, *shots: str) -> list[Path]:
    folder = sorted((root / "images").iterdir())[person]
    paths = [next(folder.glob(f"{shot}.*")) for shot in shots]
    for path in paths:
        path.write_bytes(path.read_bytes()[:-20])
    return paths


def test_all_bad_photographs_are_listed_at_once_before_anything_is_written(
    root: Path, tmp_path: Path
) -> None:
    bad = damage(root, 0, "mask1", "mask2", "normal") + damage(root, 2, "mask3")
    with pytest.raises(UserError, match="4 of 42 photographs cannot be read") as caught:
        run(root, tmp_path / "saved")
    assert all(f"{path.parent.name}/{path.name}" in str(caught.value) for path in bad)
    assert str(caught.value).count(" (") == 4
    assert "--skip-bad-images" in str(caught.value)
    assert not (tmp_path / "saved").exists()


def test_more_bad_photographs_than_a_line_holds_are_listed_above_it(
    root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bad = [path for person in range(5) for path in damage(root, person, *support.SHOTS)]
    with pytest.raises(UserError) as caught:
        run(root, tmp_path / "saved")
    pattern = r"35 of 42 photographs cannot be read, all listed above \(the first: '.+'"
    assert re.match(pattern, str(caught.value))
    listed = capfd.readouterr().err.splitlines()
    assert sorted(listed) == sorted(f"{str(path)!r} (cut off: its end is missing)" for path in bad)


def test_skipping_keeps_everybodys_fold_and_drops_who_has_none_left(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config.TrainSettings(train_root=str(root), cv=2)
    before = (
        training_run.load_table(settings)[0].drop_duplicates("person").set_index("person")["fold"]
    )
    damage(root, 0, *support.SHOTS)
    damage(root, 2, "mask3", "normal")
    assert run(root, tmp_path / "saved", "--skip-bad-images") == 0
    err = capsys.readouterr().err
    assert err.count("photographs left out, they cannot be read: 9") == 1
    assert err.count("none of their photographs can be read: 1") == 1
    rows = support.read_rows(
        tmp_path / "saved" / "kfold-ensemble-VanillaEfficientNet" / "folds.csv"
    )[1:]
    assert {row[0]: int(row[3]) for row in rows} == before.drop(sorted(before.index)[0]).to_dict()
    stored = [
        fold_state.load_validation(p, "main") for p in sorted((tmp_path / "saved").glob("*/fold??"))
    ]
    assert sum(len(found[0]) for found in stored if found) == 42 - 9


def test_a_fold_that_loses_everybody_is_refused(root: Path, tmp_path: Path) -> None:
    settings = config.TrainSettings(train_root=str(root), cv=6)
    folds = training_run.load_table(settings)[0].drop_duplicates("person")["fold"].tolist()
    damage(root, 3, *support.SHOTS)
    with pytest.raises(
        UserError, match=f"--skip-bad-images: nobody is left on one side of fold {folds[3]}"
    ):
        run(root, tmp_path / "saved", "--cv", "6", "--skip-bad-images")


@pytest.mark.parametrize("workers", ["0", "2"])
def test_one_found_only_while_reading_stops_the_run_with_its_name(
    root: Path, tmp_path: Path, workers: str
) -> None:
    path = next(sorted((root / "images").iterdir())[1].glob("*.png"))
    data = bytearray(path.read_bytes())
    middle = data.index(b"IDAT") + 60
    data[middle : middle + 40] = bytes(40)  # header and end are in order
    path.write_bytes(data)
    assert not images.inspect_image(str(path))[0]
    with pytest.raises(UserError) as caught:
        run(root, tmp_path / "saved", "--workers", workers)
    assert str(caught.value).startswith(f"{path}: cannot be read as a photograph")
    assert "Traceback" not in str(caught.value)
    for reader in multiprocessing.active_children():
        reader.join(support.LIMIT)  # at once: they were told to end
    assert not multiprocessing.active_children(), (
        "left to the garbage collector, each would be waited for ten seconds"
    )


# --- submissions


def spoilt_eval(tmp_path: Path) -> tuple[Path, list[str]]:
    root = support.make_eval(tmp_path / "eval", 5, answers=False)
    order = [row[0] for row in support.read_rows(root / "info.csv")[1:]]
    (root / "images" / order[1]).write_bytes(b"")
    (root / "images" / order[3]).write_text("no picture")
    return root, order


def submit(tree: Path, root: Path, out: Path, *words: str) -> int:
    return submit_ensemble.main(
        [
            "--root",
            str(tree),
            "--data-root",
            str(root),
            "--save-path",
            str(out),
            "--device",
            "cpu",
            "--workers",
            "0",
            "--threads",
            "1",
            "--top-k",
            "1",
            *words,
        ]
    )


@pytest.mark.parametrize("task", ["main", "mask"])
def test_in_a_submission_every_row_exists(
    tree: Path, tmp_path: Path, task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root, order = spoilt_eval(tmp_path)
    with pytest.raises(UserError, match="2 of 5 photographs cannot be read.*--skip-bad-images"):
        submit(tree, root, tmp_path / "out", "--task", task)
    assert submit(tree, root, tmp_path / "out", "--task", task, "--skip-bad-images") == 0
    counts = json.loads((tree / "run.json").read_text())["data"]["photographs_per_class"]
    main = np.array([counts[name] for name in TASKS["main"].classes])
    usual = int(main.argmax()) if task == "main" else 0
    assert capsys.readouterr().err.count("photographs that cannot be read, answered with") == 1
    tables = sorted((tmp_path / "out").glob("*/*.csv")) + sorted(
        (tmp_path / "out").glob("*/members/*.csv")
    )
    assert len(tables) == 3 + 3 + 1  # members, means, submission.csv
    for path in tables:
        rows = support.read_rows(path)[1:]
        assert [row[0] for row in rows] == order
        assert [rows[1][1], rows[3][1]] == [str(usual), str(usual)]


def test_one_checkpoint_alone_falls_back_on_its_own_predictions(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, order = spoilt_eval(tmp_path)
    alone = tmp_path / "alone" / "fold00"
    alone.mkdir(parents=True)
    path = shutil.copy(sorted(tree.glob("fold00/*.pth"))[0], alone)
    words = [
        "--load-state-dict",
        str(path),
        "--data-root",
        str(root),
        "--save-path",
        str(tmp_path / "out"),
        *support.FAST[4:],
    ]
    with pytest.raises(UserError, match="2 of 5"):
        submit_singular.main(words)
    assert submit_singular.main([*words, "--skip-bad-images"]) == 0
    assert "commonest of the other predictions: 2" in capsys.readouterr().err
    answers = [
        row[1] for row in support.read_rows(next((tmp_path / "out").glob("*/submission.csv")))[1:]
    ]
    good = [answers[i] for i in (0, 2, 4)]
    assert answers[1] == answers[3] == max(sorted(set(good), key=int), key=good.count)
    for name in order:
        (root / "images" / name).write_bytes(b"")
    with pytest.raises(UserError, match="5 of 5"):
        submit_singular.main([*words, "--skip-bad-images"])


def test_years_fall_back_on_the_median(tmp_path: Path) -> None:
    array = np.array([20.0, 50.0, 30.0], np.float32).reshape(1, 1, 3, 1)
    probs = ensemble.Probabilities("age", array, ["m"], [0], [0.5], ["a", "b", "c"])
    filled = predictor.fill_unreadable(probs, ["a", "x", "b", "c"], [0, 2, 3], tmp_path)
    assert filled.array[0, 0, :, 0].tolist() == [20, 30, 50, 30]
    (tmp_path / "run.json").write_text(
        '{"settings": {"task": "age"}, "data": {"median_age": 41.5}}'
    )
    assert predictor.most_frequent_class(probs, tmp_path) == (41.5, "the training data")


def test_metadata_that_lacks_an_entry_is_refused(tmp_path: Path) -> None:
    info = {
        "model": "VanillaResNet",
        "task": "main",
        "transform": "base",
        "backbone": "tiny",
        "image_size": 32,
        "fold": 0,
        "epoch": 1,
        "macro_f1": 0.5,
        "loss": 1.0,
        "scores": {},
        "held_out": [],
    }
    torch.save({"info": info, "state_dict": {"a": torch.zeros(1)}}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="padding"):
        checkpoint.load_checkpoint(tmp_path / "a.pth")


# --- bad tables

HEAD = "id,gender,race,age,path\n"
ROWS = "1,female,Asian,20,000001_female_Asian_20\n2,male,Asian,61,000002_male_Asian_61\n"


def people(tmp_path: Path, data: str | bytes) -> list[tuple[str, int, float]]:
    path = tmp_path / "train.csv"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return [(p, int(g), float(y)) for p, g, y in tables.read_people(path).itertuples(index=False)]


GOOD = [("000001_female_Asian_20", 1, 20.0), ("000002_male_Asian_61", 0, 61.0)]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.encode("utf-8-sig"),
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\n", "\r"),
        lambda text: text.replace(",", ";"),
        lambda text: text.replace(",", "\t"),
        lambda text: text.replace(",", ", "),
        lambda text: '"' + text.strip().replace(",", '","').replace("\n", '"\n"') + '"',
        lambda text: text.replace("20,", "20.0,"),
        lambda text: "\n\n" + text.replace("\n", "\n\n,,,,\n"),
        lambda text: text.rstrip("\n"),
        lambda text: text.replace("Asian,", '"a; b, c",'),
        lambda text: text.replace("female,", "Female ,").replace(",male", ",MALE"),
    ],
)
def test_tables_in_other_hands_spelling_are_read_right(
    tmp_path: Path, change: Callable[[str], str | bytes]
) -> None:
    assert people(tmp_path, change(HEAD + ROWS)) == GOOD


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ("", "no column 'gender' .found: an empty file"),
        ("\n \n", "an empty file"),
        (HEAD, "no rows below the header"),
        ("id,gender,race,path\n", "no column 'age'"),
        (HEAD.replace("id", "age") + ROWS, "'age' is there twice"),
        (HEAD + ROWS.replace("female,", "woman,"), "row 2: gender 'woman'"),
        *[
            (HEAD + ROWS.replace("61,", f"{age},"), "row 3: gender 'male', age")
            for age in ("", "-3", "abc", "nan", "inf", "1e1", "6_1", "121", "6１", " ", "0x20")
        ],
        *[
            (HEAD + ROWS.replace("000002_male_Asian_61", path), "row 3: the path .* plain name")
            for path in ("../../etc", "/etc", "..", ".", "a/b", "C:\\\\x")
        ],
        (HEAD + ROWS.replace("000002_male_Asian_61", ""), "row 3: the path is empty"),
        (HEAD + ROWS + ROWS, "row 4: the path '000001_female_Asian_20' is that of row 2"),
        (HEAD + ROWS + "3,male,Asian,20\n", "row 4: 4 fields, the header has 5"),
        (HEAD + "3,male,Asian,20,x,y\n" + ROWS, "row 2: 6 fields, the header has 5"),
        (
            HEAD + "\n\n" + ROWS + '3,male,"two\nlines",20,x\n4,male,Asian,abc,y\n',
            "row 7: gender 'male', age 'abc'",
        ),
        (HEAD + ROWS + '3,male,"open,20,x\n4,male,Asian,20,y\n', "row 4: no CSV"),
        (HEAD + ROWS + '3,male,"a"b,20,x\n', "row 4: no CSV"),
        (HEAD + ROWS + f"3,male,{'x' * 200_000},20,x\n", "row 4: no CSV"),
        ((HEAD + ROWS).encode() + "3,male,한국,20,x\n".encode("cp949"), "row 4: .*UTF-8"),
        ((HEAD + ROWS).encode("utf-16"), "row 1: .*UTF-8"),
        (HEAD + ROWS.replace("2,male", "2\0,male"), "row 3: .*UTF-8|row 3: no CSV"),
    ],
)
def test_bad_tables_are_refused_by_file_row_and_remedy(
    tmp_path: Path, data: str | bytes, told: str
) -> None:
    with pytest.raises(UserError, match=told) as caught:
        people(tmp_path, data)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "train.csv"))
    assert ";" in message, "no remedy"
    assert len(message) < 400


@pytest.mark.parametrize("name", ["train.csv", "info.csv"])
def test_a_table_that_is_there_but_cannot_be_read_is_not_passed_over(
    root: Path, tmp_path: Path, name: str
) -> None:
    folder = root if name == "train.csv" else support.make_eval(tmp_path / "eval", 2)
    read_root = (
        tables.read_train if name == "train.csv" else lambda where: tables.read_eval(str(where))
    )
    for make in (os.mkfifo, lambda path: os.symlink("gone", path), os.mkdir):
        if (folder / name).is_dir():
            (folder / name).rmdir()
        else:
            (folder / name).unlink(missing_ok=True)
        make(folder / name)
        with pytest.raises(UserError, match=name):
            read_root(folder)


def test_folders_and_rows_that_miss_each_other(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = root / "train.csv"
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join([*lines[:2], "\n", *lines[3:]]))
    next((root / "images" / "000001_female_Asian_20").glob("mask1.*")).unlink()
    read_back = tables.read_train(root)
    assert read_back["person"].nunique() == 5
    err = capsys.readouterr().err
    assert (
        "people left out, train.csv has no row for them: 1 (the first: '000002_male_Asian_61')"
        in err
    )
    assert "people with fewer than 7 photographs: 1" in err
    shutil.rmtree(root / "images" / "003397_male_Asian_19")
    with pytest.raises(
        UserError, match=r"train.csv: row 5: .*003397_male_Asian_19 is not there .*restore"
    ):
        tables.read_train(root)


def test_one_name_in_two_unicode_forms_is_refused(tmp_path: Path) -> None:
    names = [unicodedata.normalize(form, "김 철수") for form in ("NFC", "NFD")]
    try:
        root = support.make_train(
            tmp_path / "train", [(name, "male", 20) for name in names], junk=False
        )
    except FileExistsError:
        pytest.skip("this file system takes both for one")
    with pytest.raises(UserError, match=r"train.csv: row 3: the path .* is that of row 2 too"):
        tables.read_people(root / "train.csv")
    with pytest.raises(UserError, match="same name in another Unicode form"):
        tables.list_images(root, root / "images")
    shutil.rmtree(root / "images" / f"{names[0]}_male_Asian_20")
    lines = (root / "train.csv").read_text().splitlines(keepends=True)
    (root / "train.csv").write_text("".join(lines[:2]))
    assert tables.read_train(root)["person"].unique().tolist() == [f"{names[0]}_male_Asian_20"]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ("ImageID,ans\n{0},0\n\n{1},0\n{0},0\n", "row 5: .* is that of row 2 too"),
        ("ImageID,ans\n{0},0\nnobody.jpg,0\n", "row 3: 'nobody.jpg' is not in"),
        ("ImageID,ans\n../x.jpg,0\n", "row 2: '../x.jpg' is not in"),
        ("ImageID,ans\n../images/{0},0\n", "row 2: "),
        ("image,ans\n{0},0\n", "no column 'ImageID'"),
        ("ImageID,ans\n,0\n", "row 2: the ImageID is empty"),
    ],
)
def test_bad_info_csv_is_refused_by_row(tmp_path: Path, data: str, told: str) -> None:
    root = support.make_eval(tmp_path / "eval", 2)
    names = tables.read_eval(str(root))[0]
    (root / "info.csv").write_text(data.format(*names))
    with pytest.raises(UserError, match=f"info.csv: .*{told}"):
        tables.read_eval(str(root))
    (root / "info.csv").write_text("ImageID;ans\r\n" + "".join(f'"{name}";0\r\n' for name in names))
    assert tables.read_eval(str(root))[0] == names


def test_image_ids_are_given_back_exactly_as_info_csv_spells_them(tmp_path: Path) -> None:
    root = support.make_eval(tmp_path / "eval", 1)
    spelt = unicodedata.normalize("NFD", "=가 나.jpg")
    support.paint(root / "images" / unicodedata.normalize("NFC", spelt), 1)
    (root / "info.csv").write_text(f"ImageID,ans\n{spelt},0\n")
    names, paths = tables.read_eval(str(root))
    assert names == [spelt]
    assert Path(paths[0]).is_file()
    submission.write_predictions(tmp_path / "out.csv", "main", names, np.array([3]))
    assert support.read_rows(tmp_path / "out.csv")[1] == [spelt, "3"]


@pytest.mark.parametrize("bad", ["18", "-1", "2.5", "x", "nan", ""])
def test_answers_that_are_no_class_are_refused_by_row(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "answers.csv"
    path.write_text(f"ImageID,ans\na,3\nb,{bad}\n")
    with pytest.raises(UserError, match="answers.csv: row 3: ans"):
        tables.read_labels(str(path), ["a", "b"], "mask")
    path.write_text("ImageID,ans\na,3\na,4\n")
    with pytest.raises(UserError, match="row 3: 'a' has another answer"):
        tables.read_labels(str(path), ["a"], "main")


# --- untrusted names

EVIL = "\x1b]0;owned\x07\x1b[2J\u202egnp"


def test_names_reach_the_terminal_without_their_control_characters(
    tmp_path: Path, tree: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = support.make_train(
        tmp_path / f"t{EVIL}", [(f"1{EVIL}", "male", 20), *support.PEOPLE[:3]], junk=False
    )
    next(
        sorted((root / "images").iterdir())[0].glob("mask1.*")
    ).unlink()  # so that a warning names the person
    (sorted((root / "images").iterdir())[0] / f"{EVIL}.jpg").write_bytes(b"")
    assert run(root, tmp_path / f"s{EVIL}") == 0
    evil_tree = tmp_path / f"kfold-ensemble-{EVIL}"
    shutil.copytree(tree, evil_tree)
    evil_eval = support.make_eval(tmp_path / "eval", 2, answers=False)
    assert submit(evil_tree, evil_eval, tmp_path / f"out{EVIL}") == 0
    (evil_eval / "info.csv").write_text(f"ImageID,ans\n{EVIL},0\n")

    def refusal(_: object) -> int:
        return submit(evil_tree, evil_eval, tmp_path / "out")

    assert run_script(refusal, "submit_ensemble.py") == 2
    assert (
        run_script(
            lambda _: run(tmp_path / f"none{EVIL}\nwarning: all is well", tmp_path), "train.py"
        )
        == 2
    )
    seen = "".join(capfd.readouterr())
    assert "owned" in seen
    assert all(c.isprintable() for c in seen.replace("\n", ""))
    assert "\nwarning: all is well" not in seen


def test_formulas_in_the_tables_that_people_open_are_disarmed(tmp_path: Path) -> None:
    root = support.make_train(
        tmp_path / "train", [('=HYPERLINK("x")', "male", 20), ("@b", "female", 30)], junk=False
    )
    assert run(root, tmp_path / "saved") == 0
    rows = support.read_rows(
        tmp_path / "saved" / "kfold-ensemble-VanillaEfficientNet" / "folds.csv"
    )[1:]
    assert sorted(row[0] for row in rows) == [
        '\'=HYPERLINK("x")_male_Asian_20',
        "'@b_female_Asian_30",
    ]
    assert [csv_cell(text) for text in ("+1", "-1", "\tx", "a=1", "")] == [
        "'+1",
        "'-1",
        "'\tx",
        "a=1",
        "",
    ]


def test_a_name_that_is_no_text_is_refused_and_a_path_that_is_none_does_no_harm(
    root: Path, tmp_path: Path
) -> None:
    odd = tmp_path / os.fsdecode(b"saved\xff")
    try:
        odd.mkdir()
    except OSError:
        pytest.skip("this file system takes only UTF-8")
    assert run(root, odd) == 0
    assert run_directory.read_run_json(next(odd.glob("kfold-*")))["settings"]["save_path"] == str(
        odd
    )
    photo_file = next((root / "images" / "000001_female_Asian_20").glob("mask1.*"))
    folder = root / "images" / os.fsdecode(b"p\xff_male_Asian_20")
    folder.mkdir()
    shutil.copy(photo_file, folder)
    with pytest.raises(UserError, match=r"\\udcff.*not UTF-8; rename it"):
        tables.read_train(root)


def test_a_photograph_of_any_size_reaches_the_network(tmp_path: Path) -> None:
    path = tmp_path / "tiny.png"
    Image.new("RGB", (1, 1), "red").save(path)
    photos = dataset.ImageDataset(
        ["a"], [str(path)], [augmentation.View(augmentation.forms("base", 32).valid)]
    )
    ((_, views),) = list(
        loading.make_loader(photos, dataset.EpochBatchSampler([0], 1), 0, torch.device("cpu"))
    )
    assert views[0].shape == (1, 32, 32, 3)


# --- folders that hold something else


INFO = {
    "model": "VanillaResNet",
    "task": "main",
    "transform": "base",
    "backbone": "resnet18",
    "image_size": 32,
    "padding": None,
    "fold": 0,
    "epoch": 1,
    "macro_f1": 0.5,
    "loss": 1.0,
    "scores": {},
    "held_out": [],
}


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def history(tree: Path) -> object:
    rows = pd.DataFrame({"main": [0], "person": ["p"]})
    return summary.fold_numbers(tree, 0, "main", np.array([0]), rows)


def written(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("files", "read", "told"),
    [
        ({"images/notes.txt": ""}, lambda r: tables.read_train(r), "no photographs in it"),
        ({"images/p1/mask9.jpg": ""}, lambda r: tables.read_train(r), "no photographs in it"),
        (
            {"images/p1/mask1.jpg": ""},
            lambda r: tables.read_train(r),
            "the name tells no gender and age up to 120",
        ),
        ({}, lambda r: tables.read_train(r / "none"), "no such folder"),
        ({}, lambda r: tables.read_eval(str(r / "none")), "no such folder"),
        (
            {"images/notes.txt": ""},
            lambda r: tables.read_eval(str(r)),
            "no photographs in it, and no info.csv",
        ),
        ({"run.json": "[]"}, run_directory.read_run_json, "holds no settings"),
        ({"run.json": "{"}, run_directory.read_run_json, "damaged"),
        *[
            ({"run.json": text}, run_directory.read_run_json, "run.json: damaged .its .* is no")
            for text in (
                '{"data": [1]}',
                '{"data": null}',
                '{"chosen": [1]}',
                '{"resumed": {}}',
                '{"settings": 3}',
            )
        ],
        (
            {"images/p_male_Asian_999/mask1.jpg": ""},
            lambda r: tables.read_train(r),
            "tells no gender and age up to 120",
        ),
        (
            {"fold00/history.csv": "epoch,other\n1,2\n"},
            lambda r: history(r),
            "history.csv: damaged .no column 'train_loss'",
        ),
        ({"fold00/history.csv": ""}, lambda r: history(r), "history.csv: damaged"),
        *[
            ({"a.pth": ""}, lambda r, c=c: checkpoint.load_checkpoint(saved(r / "a.pth", c)), told)
            for c, told in (
                ({1: torch.zeros(1)}, "holds no state dict"),
                ({"a": 1}, "holds no state dict"),
                ({}, "holds no state dict"),
                ({"format": 1, "state_dict": {"a": torch.zeros(1)}}, "its metadata is missing"),
                *[
                    ({"state_dict": {"a": torch.zeros(1)}, "info": {**INFO, key: value}}, told)
                    for key, value, told in (
                        ("model", "x", "its metadata gives model as 'x', unknown here"),
                        ("task", "x", "its metadata gives task as 'x'"),
                        ("transform", "x", "its metadata gives transform"),
                        ("backbone", "x", "its metadata gives backbone as 'x', unknown here"),
                        ("fold", 10**9, "gives fold as 1000000000, .*out of range"),
                        ("fold", -1, "gives fold as -1, .*out of range"),
                    )
                ],
            )
        ],
        (
            {"b.pth": ""},
            lambda r: checkpoint.load_checkpoint(saved(r / "b.pth", {"a": torch.zeros(1)})).info,
            "a bare state dict",
        ),
        ({}, lambda r: run_directory.find_run_dir(str(r / "none")), "no such folder"),
        ({"other/a.txt": ""}, lambda r: run_directory.find_run_dir(str(r)), "train first"),
        ({}, lambda r: submission.load_probabilities(r), "no such file"),
        (
            {"b.csv": "file,left,top,right,bottom\nx.jpg,1,2,3,4\n"},
            lambda r: tables.read_boxes(str(r / "b.csv"), ["a.jpg"], ["/a.jpg"]),
            "none of its rows",
        ),
        (
            {"b.csv": "file,left,top,right,bottom\na.jpg,1,2,3,1e30\n"},
            lambda r: tables.read_boxes(str(r / "b.csv"), ["a.jpg"], ["/a.jpg"]),
            "row 2: left, top, right, bottom must be pixels",
        ),
    ],
)
def test_folders_and_files_that_hold_something_else_are_refused_by_name(
    tmp_path: Path, files: dict[str, str], read: Callable[[Path], object], told: str
) -> None:
    for name, text in files.items():
        written(tmp_path / name, text)
    with pytest.raises(UserError, match=told) as refusal:
        read(tmp_path)
    assert str(tmp_path) in str(refusal.value)


def test_a_folder_that_cannot_be_listed_is_named(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locked(path: Path) -> object:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", locked)
    for read in (lambda: tables.read_train(root), lambda: tables.read_eval(str(root))):
        with pytest.raises(
            UserError,
            match=r"images: cannot be listed \(Permission denied\); check its permissions",
        ):
            read()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"state": {"fold": 0}}, "holds no state of a fold"),
        (
            {"state": {"fold": 0, "epoch": 0, "kept": [], "more": 1}, "learner": {}},
            "holds no state of a fold",
        ),
        (
            {
                "state": {"fold": 0, "epoch": 2, "kept": []},
                "learner": {"model": {}, "optimizer": {}, "scaler": {}},
            },
            "counts epochs that validation.npz lacks",
        ),
        ([1], "holds a list, not weights"),
    ],
)
def test_a_state_that_is_none_is_refused(tmp_path: Path, content: object, told: str) -> None:
    torch.save(content, tmp_path / fold_state.STATE_FILE)
    with pytest.raises(UserError, match=told):
        fold_state.load_fold_state(tmp_path)


def slot(content: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = content["learner"]["optimizer"]["state"][0]
    return found


@pytest.mark.parametrize(
    "change",
    [
        lambda c: slot(c).update(exp_avg=torch.zeros(1)),
        lambda c: slot(c).update(exp_avg_sq=torch.zeros(4, 3)),
        lambda c: slot(c).update(step=torch.zeros(7)),
        lambda c: slot(c).update(exp_avg=torch.full((3, 4), math.nan)),
        lambda c: slot(c).update(exp_avg=torch.zeros(3, 4, device="meta")),
        lambda c: slot(c).update(exp_avg=None),
        lambda c: slot(c).update(more=torch.zeros(3, 4)),
        lambda c: slot(c).pop("exp_avg_sq"),
        lambda c: c["learner"]["optimizer"]["state"].update({0: [1]}),
        lambda c: c["learner"]["optimizer"]["state"].update({99: slot(c)}),
        lambda c: c["learner"]["optimizer"].update(state=[]),
        lambda c: c["learner"]["optimizer"].update(param_groups=3),
        lambda c: c["learner"]["optimizer"]["param_groups"].pop(),
        lambda c: c["learner"]["optimizer"]["param_groups"][0].update(params=5),
        lambda c: c["learner"].update(scaler={"scale": "x"}),
        lambda c: c["learner"]["model"].update({"0.weight": [1]}),
        lambda c: c["learner"]["model"].update(
            {"0.weight": torch.zeros(3, 4, dtype=torch.complex64)}
        ),
        lambda c: c["learner"]["model"].update({"0.weight": torch.full((3, 4), math.inf)}),
        lambda c: c["state"].update(epoch="1"),
        lambda c: c["state"].update(epoch=-1),
        lambda c: c["state"].update(step=1.5),
        lambda c: c["state"].update(step=True),
        lambda c: c["state"].update(sums=[1.0]),
        lambda c: c["state"].update(sums=[math.nan] * 5),
        lambda c: c["state"].update(sums=None),
        lambda c: c["state"].update(history=[1, 2]),
        lambda c: c["state"].update(history=[{"a": 1.0}, {"b": 1.0}]),
        lambda c: c["state"].update(history=[{"=a,b": 1.0}] * 2),
        lambda c: c["state"].update(kept=7),
        lambda c: c["state"]["kept"][0].update(file="../../a.pth"),
        lambda c: c["state"]["kept"][0].update(macro_f1="1"),
        lambda c: c["state"]["kept"][0].update(epoch=3),
    ],
)
def test_a_state_of_wrong_kinds_or_shapes_is_refused_before_the_optimizer_uses_it(
    tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    (reader,) = fuzz_readers.states(tmp_path)
    content = torch.load(tmp_path / fold_state.STATE_FILE, weights_only=True)
    change(content)
    torch.save(content, tmp_path / fold_state.STATE_FILE)
    assert (
        fuzz_readers.judge(reader.check, (tmp_path / fold_state.STATE_FILE).read_bytes())
        == "refused"
    )


def test_a_state_laid_out_otherwise_in_memory_is_copied_and_the_settings_stay_the_runs_own(
    tmp_path: Path,
) -> None:
    kept = fold_state.training_state_dict(*fuzz_readers.small_training())
    network, optimizer, scaler = fuzz_readers.small_training()
    kept["optimizer"]["state"][0].update(
        exp_avg=torch.ones(1).expand(3, 4), exp_avg_sq=torch.ones(4, 3).t()
    )
    kept["optimizer"]["param_groups"][0].update(lr="x", betas=None)
    fold_state.load_training_state(kept, network, optimizer, scaler, "state.pt")
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"]) == (1e-3, (0.9, 0.999))
    slots = optimizer.state[group["params"][0]]
    assert slots["exp_avg"].stride() == slots["exp_avg_sq"].stride() == (4, 1)
    fuzz_readers.step(network, optimizer)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("run.json", run_directory.read_run_json),
        ("probs.npz", submission.load_probabilities),
        ("validation.npz", lambda r: fold_state.load_validation(r, "main")),
        ("state.pt", fold_state.load_fold_state),
        ("a.pth", lambda r: checkpoint.load_checkpoint(r / "a.pth")),
        ("fold00/history.csv", history),
    ],
)
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/dev/zero", path)])
def test_pipes_and_devices_are_refused_without_waiting_for_them(
    tmp_path: Path, name: str, read: Callable[[Path], object], make: Callable[[Path], None]
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    make(tmp_path / name)
    with pytest.raises(UserError, match=f"{name}: .*no regular file"):
        read(tmp_path)


@pytest.mark.parametrize(
    "data",
    [
        '{"median_age": 1e999}',
        f'{{"median_age": {10**400}}}',
        '{"photographs_per_class": []}',
        "{}",
    ],
)
def test_odd_counts_in_a_run_json_are_passed_over(tmp_path: Path, data: str) -> None:
    written(tmp_path / "run.json", f'{{"settings": {{"task": "main"}}, "data": {data}}}')
    many = json.loads((tmp_path / "run.json").read_text())
    many["data"].setdefault("photographs_per_class", dict.fromkeys(TASKS["main"].classes, 10**400))
    for task, width in (("main", 18), ("mask", 3), ("age", 1)):
        probs = ensemble.Probabilities(
            task, np.ones((1, 1, 2, width), np.float32), ["m"], [0], [1.0], ["a", "b"]
        )
        assert predictor.most_frequent_class(probs, tmp_path)[0] in (0, 1)
        written(tmp_path / "run.json", json.dumps(many))
        assert submission.training_shares(tmp_path, task) is None


def test_validation_answers_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    fuzz_readers.states(tmp_path)
    np.savez(
        tmp_path / fold_state.VALIDATION_FILE,
        files=np.array(["a", "b"]),
        probs_main=np.full((2, 2, 18), np.nan, np.float32),
    )
    for read_it in (
        fold_state.load_fold_state,
        lambda folder: fold_state.load_validation(folder, "main"),
    ):
        with pytest.raises(UserError, match=r"validation\.npz: damaged .*NaN or infinity"):
            read_it(tmp_path)


def test_a_photograph_of_which_only_decoding_fails_is_answered_with_the_usual_class(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = support.make_eval(tmp_path / "eval", 3, answers=False)
    order = [row[0] for row in support.read_rows(root / "info.csv")[1:]]
    path = root / "images" / order[1]
    data = bytearray(encoded(photo((384, 512)), "PNG"))
    middle = data.index(b"IDAT") + 60
    data[middle : middle + 40] = bytes(40)
    path.write_bytes(data)
    assert not images.inspect_image(str(path))[0]
    with pytest.raises(UserError, match=f"{path}: cannot be read .*--skip-bad-images"):
        submit(tree, root, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert submit(tree, root, tmp_path / "out", "--skip-bad-images", "--batch-size", "1") == 0
    assert "photographs that cannot be read, answered with" in capsys.readouterr().err
    for table in (tmp_path / "out").glob("*/*.csv"):
        assert [row[0] for row in support.read_rows(table)[1:]] == order


def test_a_checkpoint_whose_answers_overflow_is_named_before_a_folder_is_made(
    tree: Path, eval_root: Path, tmp_path: Path
) -> None:
    found = checkpoint.load_ranked(tree / "fold01")[0]
    copy = Path(shutil.copytree(tree, tmp_path / tree.name))
    path = copy / "fold01" / found.path.name
    checkpoint.save_checkpoint(
        path,
        {n: t * 0 + 3e38 if n == "linear.weight" else t for n, t in found.weights.items()},
        found.info,
    )
    with pytest.raises(
        UserError,
        match=re.escape(path.name) + ": predictions are NaN or infinite.*--precision fp32",
    ):
        submit(copy, eval_root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_names_with_spaces_around_belong_to_their_rows_and_odd_letters_are_no_shots(
    tmp_path: Path,
) -> None:
    root = support.make_train(tmp_path / "train", support.PEOPLE[:2], junk=False)
    first = sorted((root / "images").iterdir())[0]
    next(first.glob("mask1.*")).rename(first / "ma\u017fk1.jpg")
    first.rename(first.with_name(f" {first.name} "))
    table = tables.read_train(root)
    assert table["person"].nunique() == 2
    assert len(table) == 13


def test_messages_keep_paths_whole_and_are_never_endless(tmp_path: Path) -> None:
    assert str(UserError("a/UserError: b.csv: is bad")) == "a/UserError: b.csv: is bad"
    assert (
        str(
            UserError(
                "Caught UserError.\nOriginal Traceback:\n  x\nruntime.errors.UserError: "
                "a/UserError: b\n"
            )
        )
        == "a/UserError: b"
    )
    long = str(UserError("x" * 10**6 + "; mend it"))
    assert len(long) < 2100
    assert long.endswith("; mend it")
    assert run_script(lambda _: len(os.listdir(tmp_path / ("y" * 300))), "train.py") == 2


def test_a_path_that_the_terminal_cannot_spell_is_spelled_out(tmp_path: Path) -> None:
    code = "from runtime.cli import run_script\nrun_script(lambda _: print('\uae40.csv') or 0, 'x')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii:strict"},
    )
    assert (done.returncode, done.stdout) == (0, "\\uae40.csv\n")


def test_label_fixes_are_printed_harmlessly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = support.make_train(tmp_path / "train", support.PEOPLE[:2], junk=False)
    fixes = written(
        tmp_path / f"{EVIL}.csv",
        f"path,column,value\n{tables.read_train(root)['person'][0]},age,44\n",
    )
    training_run.load_table(config.TrainSettings(train_root=str(root), label_fixes=str(fixes)))
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ("{0},age,20\n{0},age,21\n", "row 3: the age of .* is fixed by row 2 too"),
        ("{0},age,{1:g}\n", "row 2: changes nothing"),
        ("{0},age,130\n", "no age"),
        ("{0},age,x\n", "no age"),
        ("{0},gender,x\n", "no gender"),
        ("{0},race,x\n", "be fixed"),
    ],
)
def test_fixes_that_fix_nothing_are_refused(tmp_path: Path, rows: str, told: str) -> None:
    one = {"file": ["p/mask1.jpg"], "person": ["p"], "mask": [0], "gender": [0], "years": [33.0]}
    table = tables.with_labels(pd.DataFrame(one))
    path = written(tmp_path / "fixes.csv", "path,column,value\n" + rows.format("p", 33.0))
    with pytest.raises(UserError, match=told):
        label_fixes.apply_fixes(table, path)


def test_labels_of_one_class_leave_nothing_to_suspect() -> None:
    table = tables.with_labels(
        pd.DataFrame(
            {
                "file": ["a", "b"],
                "person": ["p", "q"],
                "mask": [0, 0],
                "gender": [0, 0],
                "years": [20.0, 21.0],
            }
        )
    )
    assert label_issues.find_label_issues(table, np.full((2, 18), 1 / 18)).empty


def test_predictions_whose_arrays_do_not_fit_are_refused_and_one_member_prints_no_mean(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    probs = ensemble.Probabilities(
        "mask", np.ones((1, 1, 2, 3), np.float32), ["m"], [0], [1.0], ["a", "b"]
    )
    submission.print_members(probs, np.array([0, 1]))
    assert capsys.readouterr().out == ""
    submission.save_probabilities(tmp_path, dataclasses.replace(probs, images=["a"]))
    with pytest.raises(UserError, match="do not fit each other"):
        submission.load_probabilities(tmp_path)


def test_a_run_name_and_a_tree_without_settings_are_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--run-name 'a/b': use letters"):
        run(root, tmp_path, "--run-name", "a/b")
    written(tmp_path / "kfold-ensemble-VanillaEfficientNet_x" / "run.json", "{}")
    with pytest.raises(UserError, match=r"has no run\.json with settings"):
        run(root, tmp_path, "--resume", "x")
    with (
        run_directory.fold_lock(tmp_path / "fold00", needed=False),
        run_directory.fold_lock(tmp_path / "fold00"),
    ):
        pass  # a process that shares a fold's work leaves the lock to the first
