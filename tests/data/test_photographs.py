"""Photographs: whose fault it is that one cannot be read, which formats are read, and what a PNG
may carry beside its pixels.
"""

from __future__ import annotations

import errno
import io
import multiprocessing
import os
import shutil
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

import submit_ensemble
import submit_singular
import train
from data import images, tables
from runtime.cli import run_script
from runtime.errors import CliError, RunError, UserError
from tests.helpers import support

DRIVE = ("EIO", "ESTALE", "ETIMEDOUT", "ENOTCONN", "ENODEV", "EBADMSG")


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


def training(root: Path, saved: Path, *words: str) -> list[str]:
    return [
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


def refuse_to_open(patch: pytest.MonkeyPatch, refuses: Callable[[str], bool], name: str) -> None:
    """From now on the system refuses to open these paths for a reason of this name."""
    plain, number = os.open, getattr(errno, name)

    def open_(path: str, *rest: int, **named: int) -> int:
        if refuses(str(path)):
            raise OSError(number, os.strerror(number), path)
        return plain(path, *rest, **named)

    patch.setattr(os, "open", open_)


# --- whose fault it is


@pytest.mark.parametrize("skip", [[], ["--skip-bad-images"]])
@pytest.mark.parametrize("name", [*DRIVE, "EACCES"])
def test_a_drive_that_fails_stops_a_submission_instead_of_being_answered(
    tree: Path, tmp_path: Path, name: str, skip: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """(16.2)"""
    root = support.make_eval(tmp_path / "eval", 3, answers=False)
    path = tables.read_eval(str(root))[1][1]
    refuse_to_open(monkeypatch, lambda opened: opened == path, name)
    with pytest.raises(CliError) as caught:
        submit(tree, root, tmp_path / "out", *skip)
    message = str(caught.value)
    assert caught.value.code == (2 if name == "EACCES" else 1)
    assert message.startswith(f"{path}: cannot be opened ({os.strerror(getattr(errno, name))})")
    assert "skip-bad-images" not in message, "that would answer it with a class"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["EIO", "EACCES"])
def test_a_drive_that_fails_stops_a_training_instead_of_costing_people(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(16.2)"""
    root = support.make_train(tmp_path / "train", support.PEOPLE[:6], junk=False)
    refuse_to_open(monkeypatch, lambda opened: f"{os.sep}000003_" in opened, name)
    for skip in ([], ["--skip-bad-images"]):
        with pytest.raises(CliError, match=r"000003_female.*: cannot be opened") as caught:
            train.main(training(root, tmp_path / "saved", *skip))
        assert caught.value.code == (2 if name == "EACCES" else 1)
        assert not (tmp_path / "saved").exists()


def test_what_is_missing_or_no_regular_file_is_the_photographs_own_fault(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """(16.2)"""
    root = support.make_eval(tmp_path / "eval", 7, answers=False)
    names = tables.read_eval(str(root))[0]
    images = root / "images"
    for name in names[:6]:
        (images / name).unlink()
    os.mkfifo(images / names[0])
    (images / names[1]).mkdir()
    (images / names[2]).symlink_to(names[2])
    (images / names[3]).symlink_to("gone.jpg")
    (images / names[4]).symlink_to(f"{names[6]}/below")
    monkeypatch.chdir(images)  # a socket's whole path may be too long
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(names[5])
        with pytest.raises(UserError, match="6 of 7 photographs cannot be read"):
            submit(tree, root, tmp_path / "out")
        assert submit(tree, root, tmp_path / "out", "--skip-bad-images") == 0
    assert "photographs that cannot be read, answered with" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.EIO, "Input/output error", "library.so"), "Input/output error"),
        (TimeoutError(errno.ETIMEDOUT, "Connection timed out"), "Connection timed out"),
        (RunError("a.jpg: cannot be opened (Stale file handle)"), "a.jpg: cannot be opened"),
        (UserError("a.jpg: cannot be read as a photograph"), "a.jpg: cannot be read"),
    ],
)
def test_a_failure_in_a_reading_process_reaches_the_command_line_in_one_line(
    tmp_path: Path,
    error: Exception,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """(16.2)"""
    root = support.make_train(tmp_path / "train", support.PEOPLE[:4], junk=False)
    plain = images.read_image

    def read(path: str, shrink: int = 1) -> Image.Image:
        if multiprocessing.parent_process() is not None:
            raise error
        return plain(path, shrink)

    monkeypatch.setattr(images, "read_image", read)
    words = training(root, tmp_path / "saved", "--workers", "1")
    assert run_script(lambda _: train.main(words), "train.py") == getattr(error, "code", 1)
    lines = [
        line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")
    ]
    assert len(lines) == 1
    assert lines[0].startswith("train.py: error: ")
    assert told in lines[0]
    assert "Traceback" not in lines[0]


def test_a_drive_that_fails_only_in_a_reading_process_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(16.2)"""
    root = support.make_train(tmp_path / "train", support.PEOPLE[:4], junk=False)
    refuse_to_open(
        monkeypatch,
        lambda path: "mask3" in path and multiprocessing.parent_process() is not None,
        "EIO",
    )
    with pytest.raises(
        RunError, match=r"mask3\.\w+: cannot be opened \(Input/output error\).*--resume"
    ):
        train.main(training(root, tmp_path / "saved", "--workers", "1"))


@pytest.mark.parametrize("name", ["train.csv", "info.csv"])
@pytest.mark.parametrize("call", ["open", "lstat"])
def test_a_table_on_a_drive_that_fails_is_neither_passed_over_nor_the_users_fault(
    tmp_path: Path, name: str, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(16.2)"""
    train_table, data = name == "train.csv", tmp_path / "data"
    root = support.make_train(data, support.PEOPLE[:2]) if train_table else support.make_eval(data)
    if call == "open":
        refuse_to_open(monkeypatch, lambda path: path.endswith(name), "EIO")
    else:
        plain = os.lstat

        def lstat(path: object, *rest: object, **named: object) -> os.stat_result:
            if str(path).endswith(name):
                raise OSError(errno.ESTALE, "Stale file handle", str(path))
            return plain(path, *rest, **named)  # type: ignore[arg-type]

        monkeypatch.setattr(os, "lstat", lstat)
        stat = os.stat
        monkeypatch.setattr(
            os,
            "stat",
            lambda path, *a, follow_symlinks=True, **k: (  # by which Python asks before 3.12
                (stat if follow_symlinks else lstat)(path, *a, **k)
            ),
        )
    with pytest.raises(RunError, match=rf"{name}: cannot be"):
        tables.read_train(root) if train_table else tables.read_eval(str(root))


# --- formats


FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".gif": "GIF",
    ".jfif": "JPEG",
    ".avif": "AVIF",
}
READ = [extension for extension in FORMATS if extension in Image.registered_extensions()]


def portrait() -> Image.Image:
    small = np.random.RandomState(0).randint(0, 256, (4, 3, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((384, 512), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **save: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **save)
    return buffer.getvalue()


def test_every_format_that_pillow_reads_is_taken_for_training_and_for_answers(
    tmp_path: Path, tree: Path
) -> None:
    """(16.14)"""
    people = [(f"{number:06d}", "male", 20 + number) for number in range(1, 1 + len(READ))]
    root = support.make_train(tmp_path / "train", people, junk=False)
    answered = support.make_eval(tmp_path / "eval", 0, answers=False)
    for number, (folder, extension) in enumerate(
        zip(sorted((root / "images").iterdir()), READ, strict=True)
    ):
        data = encoded(portrait(), FORMATS[extension])
        for shot in sorted(folder.iterdir()):
            shot.unlink()
            (folder / f"{shot.stem}{extension.upper() if number % 2 else extension}").write_bytes(
                data
            )
        (answered / "images" / f"{number:02d}{extension}").write_bytes(data)
    table = tables.read_train(root)
    (answered / "info.csv").unlink()
    assert len(table) == 7 * len(READ)
    assert train.main([*training(root, tmp_path / "saved"), "--dry-run"]) == 0
    names, paths = tables.read_eval(str(answered / "images"))[0], tables.read_eval(str(answered))[1]
    assert names == [f"{number:02d}{extension}" for number, extension in enumerate(READ)]
    shown = [
        np.asarray(image).astype(int) for image in (portrait(), *map(images.read_image, paths))
    ]
    assert max(np.abs(shown[0] - other).mean() for other in shown[1:]) < 20
    (answered / "info.csv").write_text(
        "ImageID,ans\n" + "".join(f"{name},0\n" for name in reversed(names))
    )
    assert submit(tree, answered, tmp_path / "out") == 0
    rows = support.read_rows(next((tmp_path / "out").glob("*/arithmetic.csv")))[1:]
    assert [row[0] for row in rows] == names[::-1]


def test_what_is_left_out_of_a_folder_is_counted_and_heic_gets_its_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """(16.14)"""
    root = support.make_train(tmp_path / "train", support.PEOPLE[:2])
    folder = sorted((root / "images").glob("0*"))[0]
    for name in ("mask1.heic", "mask2.HEIC", "notes.txt", "mask3.psd", "Thumbs.db"):
        (folder / name).write_bytes(b"x")
    (folder / "old").mkdir()
    (root / "images" / "list.txt").write_text("x")
    tables.read_train(root)
    err = capsys.readouterr().err.splitlines()
    heic = [line for line in err if "HEIC" in line]
    assert len(heic) == 1
    assert "save it as JPEG" in heic[0]
    assert ": 2 (the first: " in heic[0]
    others = [line for line in err if ".jfif" in line]
    assert len(others) == 1
    assert ": 4 (the first: " in others[0]


def test_photographs_that_info_csv_does_not_list_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """(16.14)"""
    root = support.make_eval(tmp_path / "eval", 3)
    support.paint(root / "images" / "more.jpg", 1)
    (root / "images" / "more.mov").write_bytes(b"x")
    assert len(tables.read_eval(str(root))[0]) == 3
    err = capsys.readouterr().err
    assert "info.csv has no row for them: 1 (the first: 'more.jpg')" in err
    assert ": 1 (the first: 'more.mov')" in err
    tables.read_eval(str(support.make_eval(tmp_path / "other", 3)))
    assert capsys.readouterr().err == ""


def test_heic_is_named_with_its_remedy_whatever_its_extension(tmp_path: Path) -> None:
    """(16.14)"""
    root = support.make_eval(tmp_path / "eval", 1)
    (root / "images" / "a.heic").write_bytes(b"x")
    (root / "info.csv").write_text("ImageID,ans\na.heic,0\n")
    with pytest.raises(
        UserError, match=r"row 2: 'a.heic' is not read, HEIC is not read here, save it as JPEG"
    ):
        tables.read_eval(str(root))
    for brand in (b"heic", b"mif1"):
        (tmp_path / "b.jpg").write_bytes(
            struct.pack(">I", 24) + b"ftyp" + brand + bytes(4) + b"mif1heic" + bytes(100)
        )
        with pytest.raises(UserError, match=r"b\.jpg: .*HEIC is not read here, save it as JPEG"):
            images.read_image(str(tmp_path / "b.jpg"))
    only = tmp_path / "only" / "images"
    only.mkdir(parents=True)
    shutil.copy(root / "images" / "a.heic", only)
    with pytest.raises(UserError, match="no photographs in it"):
        tables.read_eval(str(only))


# --- what a PNG may carry


def chunk(kind: bytes, body: bytes, wrong: int = 0) -> bytes:
    return (
        struct.pack(">I", len(body))
        + kind
        + body
        + struct.pack(">I", zlib.crc32(kind + body) ^ wrong)
    )


def with_chunks(data: bytes, *chunks: bytes, before: bytes = b"IDAT") -> bytes:
    at = data.index(before) - 4
    return data[:at] + b"".join(chunks) + data[at:]


LONG = zlib.compress(b"x" * 1_500_000)
BOMB = zlib.compress(bytes(20_000_000))
ODD = {
    "a long packed text": [chunk(b"zTXt", b"Comment\0\0" + LONG)],
    "a long international text": [chunk(b"iTXt", b"Comment\0\1\0\0\0" + LONG)],
    "a bomb under a keyword that is looked at": [
        chunk(b"zTXt", b"Raw profile type exif\0\0" + BOMB)
    ],
    "a bomb of XMP": [chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + BOMB)],
    "texts of 70 MB together": [chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 1_000_000))]
    * 70,
    "a long profile": [chunk(b"iCCP", b"profile\0\0" + LONG)],
    "a text with a wrong checksum": [chunk(b"tEXt", b"Comment\0hello", 1)],
    "a date with a wrong checksum": [chunk(b"tIME", bytes(7), 1)],
    "gamma with a wrong checksum": [chunk(b"gAMA", bytes(4), 1)],
    "a resolution too short": [chunk(b"pHYs", b"\0")],
    "EXIF with a wrong checksum": [chunk(b"eXIf", b"MM\0*" + bytes(20), 1)],
    "transparency with a wrong checksum": [chunk(b"tRNS", bytes(6), 1)],
    "damaged packed text": [chunk(b"zTXt", b"Raw profile type exif\0\0no zlib")],
}


@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
@pytest.mark.parametrize("odd", ODD, ids=ODD.keys())
def test_a_png_whose_pixels_are_whole_is_read_whatever_stands_beside_them(
    tmp_path: Path, odd: str, before: bytes
) -> None:
    """(16.15)"""
    path = tmp_path / "photo.png"
    path.write_bytes(with_chunks(encoded(portrait(), "PNG"), *ODD[odd], before=before))
    assert not images.inspect_image(str(path))[0]
    assert images.read_image(str(path)).tobytes() == portrait().tobytes()


def test_such_a_png_is_answered_by_the_command(tree: Path, tmp_path: Path) -> None:
    """(16.15)"""
    root = support.make_eval(tmp_path / "eval", 2)
    name = tables.read_eval(str(root))[0][0]
    (root / "images" / name).write_bytes(
        with_chunks(encoded(portrait(), "PNG"), *ODD["a long packed text"])
    )
    checkpoint = sorted(tree.glob("fold00/*.pth"))[0]
    words = [
        "--load-state-dict",
        str(checkpoint),
        "--data-root",
        str(root),
        "--save-path",
        str(tmp_path / "out"),
    ]
    assert submit_singular.main([*words, *support.FAST[4:]]) == 0


def test_a_png_that_is_damaged_where_it_matters_stays_refused(tmp_path: Path) -> None:
    """(16.15)"""
    whole = encoded(portrait().convert("P"), "PNG")
    path = tmp_path / "photo.png"
    for kind in (b"IHDR", b"PLTE"):
        at = whole.index(kind)
        end = at + 4 + int.from_bytes(whole[at - 4 : at], "big")
        path.write_bytes(whole[:end] + bytes([whole[end] ^ 1]) + whole[end + 1 :])
        with pytest.raises(UserError, match="cannot be read as a photograph"):
            images.read_image(str(path))
    path.write_bytes(with_chunks(whole, chunk(b"tEXt", b"Comment\0hello"))[:-12])
    assert images.inspect_image(str(path))[0] == "cut off: its end is missing"


def test_a_png_is_turned_by_whatever_tells_its_orientation(tmp_path: Path) -> None:
    """(16.15)"""
    exif = Image.Exif()
    exif[0x0112] = 6
    raw = exif.tobytes()
    profile = b"\nexif\n%8d\n" % len(raw) + raw.hex().encode() + b"\n"
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    tellers = {
        "eXIf": chunk(b"eXIf", raw.removeprefix(b"Exif\0\0")),
        "zTXt": chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile)),
        "tEXt": chunk(b"tEXt", b"Raw profile type exif\0" + profile),
        "iTXt": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
        "packed iTXt": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp)),
    }
    for name, teller in tellers.items():
        path = tmp_path / "photo.png"
        path.write_bytes(
            with_chunks(encoded(portrait(), "PNG"), *ODD["a long packed text"], teller)
        )
        upright = portrait().transpose(Image.Transpose.ROTATE_270)
        assert images.read_image(str(path)).tobytes() == upright.tobytes(), name


def test_a_png_is_checked_without_its_pixels_unless_it_may_be_turned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    load = PngImagePlugin.PngImageFile.load

    def counted(photo: PngImagePlugin.PngImageFile) -> Any:
        decoded.append(path.name)
        return load(photo)

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", counted)
    exif = Image.Exif()
    exif[0x0112] = 6
    behind = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    whole = encoded(Image.new("RGB", (512, 384), "gray"), "PNG")
    for name, data, other_size in (
        ("plain.png", whole, True),
        ("turned.png", whole[:-12] + behind + whole[-12:], False),  # behind the pixels
    ):
        path = tmp_path / name
        path.write_bytes(data)
        assert images.inspect_image(str(path)) == ("", other_size)
    assert set(decoded) == {"turned.png"}


def test_transparency_still_shows_white(tmp_path: Path) -> None:
    """(16.15)"""
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(Image.new("RGB", (4, 4), (1, 2, 3)), "PNG", transparency=(1, 2, 3)))
    assert images.read_image(str(path)).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("size", [(12000, 9000), (9024, 12032), (16320, 12240)])
def test_what_telephones_take_is_a_photograph(tmp_path: Path, size: tuple[int, int]) -> None:
    """(16.15)"""
    header = bytearray(encoded(Image.new("1", (1, 1)), "PNG"))
    header[16:24] = struct.pack(">II", *size)
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    (tmp_path / "large.png").write_bytes(header)
    assert images.inspect_image(str(tmp_path / "large.png")) == ("", True)
