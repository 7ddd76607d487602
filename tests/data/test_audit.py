"""Label suspects and corrections, and the search for photographs that two people share."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageOps

import config
import train
from data import csv_tables, duplicates, label_fixes, tables
from labels import GENDERS
from reporting import label_issues
from runtime import errors
from runtime.errors import UserError
from tests.helpers import support
from training import run as training_run
from training import run_files

# --- suspects


def answered(people: int = 80, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray]:
    """A table of people with right labels, and the answers [photographs, 18] of a model that is
    mostly right.
    """
    draw = np.random.RandomState(seed)
    rows = [
        (f"{k:03d}", shot, float(20 + 10 * (k % 5)), k // 5 % 2)
        for k in range(people)
        for shot in support.SHOTS
    ]
    table = pd.DataFrame(rows, columns=["person", "shot", "years", "gender"])
    table["file"] = table["person"] + "/" + table["shot"] + ".jpg"
    table["mask"] = table["shot"].map({"incorrect_mask": 1, "normal": 2}).fillna(0).astype(int)
    table = tables.with_labels(table)
    logits = draw.normal(0, 1, (len(table), 18)) + 3 * np.eye(18)[table["main"]]
    return table, np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def test_right_labels_raise_few_suspects() -> None:
    found = label_issues.find_label_issues(*answered())
    assert list(found.columns) == label_issues.COLUMNS
    assert len(found) <= 12


def test_planted_errors_come_first() -> None:
    table, probabilities = answered()
    wrong = table.copy()
    genders, swapped = ["004", "031", "077"], ["012", "055"]
    wrong.loc[wrong["person"].isin(genders), "gender"] ^= 1
    moved = wrong["person"].isin(swapped) & (wrong["mask"] > 0)
    wrong.loc[moved, "mask"] = 3 - wrong.loc[moved, "mask"]
    found = label_issues.find_label_issues(tables.with_labels(wrong), probabilities)
    assert found["evidence"].is_monotonic_decreasing
    assert set(found[found["kind"] == "gender"]["person"][:3]) == set(genders)
    masks = found[found["kind"] == "mask"][:4]
    assert set(masks["file"]) == {
        f"{p}/{shot}.jpg" for p in swapped for shot in ("incorrect_mask", "normal")
    }
    assert set(zip(masks["given"], masks["suggested"], strict=True)) == {
        ("incorrect", "not_wear"),
        ("not_wear", "incorrect"),
    }
    assert (masks.groupby("person")["evidence"].nunique() == 1).all(), (
        "both files of a swap share their evidence"
    )


def test_one_photograph_that_disagrees_makes_nobody_a_suspect() -> None:
    table, probabilities = answered()
    probabilities[table["file"] == "010/mask3.jpg"] = np.eye(18)[3] * 0.99 + 0.0005
    found = label_issues.find_label_issues(table, probabilities)
    assert "010" not in set(found[found["kind"] == "gender"]["person"])


def test_a_group_away_is_more_suspicious_than_a_year_away() -> None:
    table, probabilities = answered()
    old = 6 * table["mask"] + 3 * table["gender"] + 2
    for person, years in (("002", 59.0), ("003", 40.0)):  # both look sixty
        own = (table["person"] == person).to_numpy()
        table.loc[own, "years"] = years
        probabilities[own] = 0.9 * np.eye(18)[old[own]] + 0.1 / 18
    found = label_issues.find_label_issues(tables.with_labels(table), probabilities)
    evidence = found[found["kind"] == "age"].set_index("person")["evidence"]
    assert evidence.index[0] == "003"
    assert evidence.get("002", 0.0) < evidence["003"] / 2


def test_a_table_of_one_gender_has_no_gender_suspects() -> None:
    table, probabilities = answered()
    women = (table["gender"] == 1).to_numpy()
    found = label_issues.find_label_issues(
        table[women].reset_index(drop=True), probabilities[women]
    )
    assert "gender" not in set(found["kind"])


def test_suspects_are_written_as_they_are(tmp_path: Path) -> None:
    found = label_issues.find_label_issues(*answered())
    csv_tables.write_csv(tmp_path / "suspects.csv", found, "%.2f")
    again = pd.read_csv(tmp_path / "suspects.csv", dtype={"person": str})
    assert list(again.columns) == label_issues.COLUMNS
    assert again["file"].tolist() == found["file"].tolist()


# --- fixes


def fixes(folder: Path, *lines: str) -> str:
    path = folder / "fixes.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def test_fixes_change_every_label_that_hangs_on_them(train_root: Path, tmp_path: Path) -> None:
    table = tables.read_train(train_root)
    lines = (
        "000001_female_Asian_20,gender,male",
        "000001_female_Asian_20,age,61",
        "000002_male_Asian_61,age,29.4",
    )
    fixed, counts = label_fixes.apply_fixes(
        table, fixes(tmp_path, "path,column,value,note", *(f"{line},x" for line in lines))
    )
    assert counts == {"gender": 1, "age": 2}
    own = fixed[fixed["person"] == "000001_female_Asian_20"]
    assert set(zip(own["gender"], own["age"], own["ageg"], own["main"] % 6, strict=True)) == {
        (0, 61.0, 2, 2)
    }
    assert set(fixed[fixed["person"] == "000002_male_Asian_61"]["ageg"]) == {0}
    rest = ~fixed["person"].isin(["000001_female_Asian_20", "000002_male_Asian_61"])
    pd.testing.assert_frame_equal(fixed[rest], table[rest])
    assert fixed.dtypes.equals(table.dtypes)
    assert list(fixed.columns) == list(table.columns)


@pytest.mark.parametrize("form", ["short", "long", "codes"])
def test_mask_fixes_take_single_photographs(form: str, train_root: Path, tmp_path: Path) -> None:
    table = tables.read_train(train_root)
    own = table[table["person"] == "000003_female_Asian_45"].set_index("shot")["file"]
    # both spellings of a file
    names = (own["incorrect_mask"], own["normal"].removeprefix("images/"))
    values = ("2", "1") if form == "codes" else ("not_wear", "incorrect")
    long = [f"{name},mask,{value}" for name, value in zip(names, values, strict=True)]
    short = [f"{name},{value}" for name, value in zip(names, values, strict=True)]
    path = (
        fixes(tmp_path, "path,column,value", *long)
        if form == "long"
        else fixes(tmp_path, "image,mask", *short)
    )
    fixed, counts = label_fixes.apply_fixes(table, path)
    assert counts == {"mask": 2}
    changed = fixed[fixed["mask"] != table["mask"]].set_index("shot")
    assert changed["mask"].to_dict() == {"incorrect_mask": 2, "normal": 1}
    assert (changed["main"] // 6 == changed["mask"]).all()


P = "000001_female_Asian_20"
REFUSED = (
    (("person,gender", f"{P},male"), "expected path,column,value or image,mask"),
    (("path,column,value",), "no rows"),
    (
        ("path,column,value", f"{P},age,30", "000001,gender,male"),
        "row 3: there is no person '000001'",
    ),
    (("path,column,value", f"{P},race,White"), "row 2: the column 'race'"),
    (
        ("path,column,value", f"{P},gender,man"),
        "row 2: 'man' is no gender; write one of male, female",
    ),
    (("path,column,value", f"{P},age,old"), "row 2: 'old' is no age"),
    (("path,column,value", f"{P},age,nan"), "row 2: 'nan' is no age"),
    (("path,column,value", f"{P},age,130"), "row 2: '130' is no age"),
    (("path,column,value", f"{P},gender,female"), "row 2: changes nothing"),
    (("path,column,value", f"{P},age,20.0"), "row 2: changes nothing"),
    (
        ("path,column,value", f"{P},age,30", f"{P},age,31"),
        "row 3: the age of .* is fixed by row 2 too",
    ),
    (("path,column,value", f"{P},mask,wear"), "row 2: there is no photograph"),
    (
        ("image,mask", f"images/{P}/mask9.jpg,wear"),
        "row 2: there is no photograph .*; write it like images/",
    ),
    (
        ("image,mask", f"images/{P}/mask1.jpg,off"),
        "row 2: 'off' is no mask; write one of wear, incorrect, not_wear",
    ),
    (("image,mask", f"images/{P}/mask1.jpg,wear"), "row 2: changes nothing"),
)


@pytest.mark.parametrize(
    ("lines", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED]
)
def test_a_fix_that_would_do_nothing_or_harm_is_refused(
    lines: tuple[str, ...], message: str, train_root: Path, tmp_path: Path
) -> None:
    table = tables.read_train(train_root)
    lines = tuple(line.replace(f"{P}/mask1.jpg", f"{P}/{mask1(table)}") for line in lines)
    with pytest.raises(UserError, match=rf"fixes\.csv: .*{message}"):
        label_fixes.apply_fixes(table, fixes(tmp_path, *lines))


def mask1(table: pd.DataFrame) -> str:
    """The name of the first mask1 file of the first person, whatever its extension."""
    return Path(table[(table["person"] == P) & (table["shot"] == "mask1")]["file"].iloc[0]).name


@pytest.mark.parametrize("cv", [1, 4])
def test_fixes_do_not_move_a_fold(
    cv: int, train_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tables.read_train(train_root)
    lines = [
        f"{row.person},gender,{GENDERS[1 - row.gender]}"
        for row in table.drop_duplicates("person").itertuples()
    ]
    settings = config.TrainSettings(train_root=str(train_root), cv=cv)
    before = training_run.load_table(settings)[0]
    path = fixes(tmp_path, "path,column,value", *lines[:5], "000003_female_Asian_45,age,20")
    after = training_run.load_table(
        config.TrainSettings(train_root=str(train_root), cv=cv, label_fixes=path)
    )[0]
    assert (before["file"] == after["file"]).all()
    assert (before["fold"] == after["fold"]).all()
    assert (before["gender"] != after["gender"]).sum() == 5 * 7
    line = f"--label-fixes {path}: corrected gender 5, age 1 (35 photographs)"
    assert line in capsys.readouterr().out.splitlines()


def test_the_command_takes_fixes(
    train_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "--train-root",
        str(train_root),
        "--save-path",
        str(tmp_path / "s"),
        *support.FAST,
        "--dry-run",
        "--label-fixes",
    ]
    assert train.main([*words, fixes(tmp_path, "path,column,value", f"{P},gender,male")]) == 0
    assert "corrected gender 1 (7 photographs)" in capsys.readouterr().out
    with pytest.raises(UserError, match="row 2: there is no person"):
        train.main([*words, fixes(tmp_path, "path,column,value", "nobody,gender,male")])
    with pytest.raises(UserError, match="none.csv: cannot be read"):
        train.main([*words, str(tmp_path / "none.csv")])


# --- duplicates


@pytest.fixture
def album(tmp_path: Path) -> tuple[list[str], list[str]]:
    """Paths and people: ten people with three photographs each, no two alike."""
    paths, people = [], []
    for k in range(30):
        paths.append(str(tmp_path / f"{k:02d}.jpg"))
        people.append(f"person{k // 3}")
        small = Image.frombytes("RGB", (9, 13), random.Random(k).randbytes(9 * 13 * 3))
        small.resize((384, 512), Image.Resampling.BICUBIC).save(paths[-1])
    return paths, people


def test_different_photographs_are_no_duplicates(album: tuple[list[str], list[str]]) -> None:
    assert duplicates.find_duplicates(*album) == []


def test_copies_of_somebody_else_are_found_however_disguised(
    album: tuple[list[str], list[str]],
) -> None:
    paths, people = album
    sources = [Image.open(paths[k]).convert("RGB") for k in (0, 4, 8, 12)]
    copies = [
        sources[0].resize((300, 400)),
        ImageOps.mirror(sources[1]),
        sources[2].crop((12, 4, 380, 500)),
        ImageOps.mirror(sources[3].crop((6, 12, 376, 500)).convert("L")),
    ]
    for copy, k in zip(copies, (20, 23, 26, 29), strict=True):
        copy.save(paths[k], quality=50)
    found = duplicates.find_duplicates(paths, people)
    assert {(a, b) for a, b, _ in found} == {
        (paths[a], paths[b]) for a, b in ((0, 20), (4, 23), (8, 26), (12, 29))
    }
    distances = [d for _, _, d in found]
    assert distances == sorted(distances)
    assert -1e-3 < distances[0] < duplicates.MAX_DISTANCE


def test_one_persons_copies_are_their_own_matter(album: tuple[list[str], list[str]]) -> None:
    paths, people = album
    Image.open(paths[0]).save(paths[1])
    assert duplicates.find_duplicates(paths, people) == []


def test_an_unreadable_photograph_is_counted_and_left_out(
    album: tuple[list[str], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    paths, people = album
    Path(paths[5]).write_bytes(b"no photograph")
    Image.open(paths[0]).save(paths[10])
    found = duplicates.find_duplicates(paths, people)
    assert [(a, b) for a, b, _ in found] == [(paths[0], paths[10])]
    assert f"they cannot be read: 1 (the first: '{paths[5]}')" in capsys.readouterr().err
    assert duplicates.find_duplicates(paths[5:6], people[5:6]) == []


def test_more_photographs_than_a_block(
    album: tuple[list[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "BLOCK_IMAGES", 7)
    paths, people = album
    ImageOps.mirror(Image.open(paths[2])).save(paths[25])
    assert [(a, b) for a, b, _ in duplicates.find_duplicates(paths, people)] == [
        (paths[2], paths[25])
    ]


def test_bits_are_counted_alike_by_every_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.arange(256, dtype=np.uint8).reshape(16, 16)
    expected = [[bin(number).count("1") for number in row] for row in data.tolist()]
    assert duplicates.count_bits(data).tolist() == expected
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert duplicates.count_bits(data).tolist() == expected


def test_candidates_are_the_pairs_of_different_people_with_few_differing_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(duplicates, "BLOCK_IMAGES", 16)
    monkeypatch.setattr(duplicates, "MAX_PAIRS_PER_IMAGE", 100)
    monkeypatch.setattr(duplicates, "MAX_HASH_BITS", 0.45)
    generator = np.random.default_rng(0)
    hashes = generator.random((40, duplicates.FREQUENCIES, duplicates.FREQUENCIES)) < 0.5
    hashes[:, 0, 0] = False
    people = generator.integers(0, 20, 40)
    flipped = hashes ^ (np.arange(duplicates.FREQUENCIES) % 2 == 1)
    expected = {
        (i, j, mirrored)
        for i in range(40)
        for j in range(i + 1, 40)
        for mirrored, others in ((False, hashes), (True, flipped))
        if people[i] != people[j] and (hashes[i] ^ others[j]).sum() <= 0.45 * 143
    }
    pairs = duplicates.candidate_pairs(hashes, people)
    assert set(pairs) == expected
    assert len(pairs) == len(expected) > 50


def test_rough_distances_let_copies_through_and_few_others(
    album: tuple[list[str], list[str]],
) -> None:
    thumbnails, _ = duplicates.read_thumbnails(album[0])
    copy = np.asarray(
        Image.fromarray(thumbnails[3]).resize((72, 96), Image.Resampling.BICUBIC, (2, 3, 70, 94))
    )
    pixels = np.concatenate([thumbnails, [copy, copy[:, ::-1]]])
    pairs = [(3, 30, False), (3, 31, True), *((3, k, False) for k in range(4, 30))]
    rough = duplicates.measure_distances(
        duplicates.halve(pixels), pairs, duplicates.crop_all, duplicates.ROUGH_STEPS
    )
    fine = duplicates.measure_distances(
        pixels, pairs, duplicates.crop_each, duplicates.ALIGNMENT_STEPS
    )
    for distances in (rough, fine):
        assert (distances[:2] < duplicates.MAX_DISTANCE).all()
        assert (distances[2:] > duplicates.MAX_ROUGH_DISTANCE).all()


def test_both_ways_to_crop_give_the_same(album: tuple[list[str], list[str]]) -> None:
    thumbnails, _ = duplicates.read_thumbnails(album[0][:3])
    boxes = np.array([[0, 0, 1, 1], [0.1, 0.05, 0.9, 0.93], [0.06, 0.06, 0.94, 0.94]])
    for shrink in (1, 2):
        each = duplicates.crop_each(thumbnails, boxes, shrink)
        assert each.shape == (3, duplicates.HEIGHT // shrink, duplicates.WIDTH // shrink)
        np.testing.assert_allclose(duplicates.crop_all(thumbnails, boxes, shrink), each, atol=0.01)


@pytest.mark.parametrize("copies", [0, 1])
def test_files_that_an_earlier_run_searched_are_not_searched_again(
    copies: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = support.make_train(tmp_path / "train", support.PEOPLE[:6], junk=False)
    files = sorted((root / "images").glob("*/mask1.*"))
    noise = Image.frombytes("RGB", (9, 13), random.Random(1).randbytes(9 * 13 * 3))
    for path in files[: 2 * copies]:
        noise.resize((384, 512), Image.Resampling.BICUBIC).save(path, quality=90)
    searched: list[int] = []
    search = duplicates.find_duplicates

    def counted(paths: list[str], people: list[str]) -> list[duplicates.Pair]:
        searched.append(len(paths))
        return search(paths, people)

    monkeypatch.setattr(duplicates, "find_duplicates", counted)
    tables_of_pairs = []

    def start(name: str) -> Path:
        settings = config.TrainSettings(
            train_root=str(root),
            save_path=str(tmp_path / "saved"),
            run_name=name,
            backbone="tiny",
            pretrained="none",
            image_size=32,
            workers=0,
            device="cpu",
        )
        context = training_run.prepare_run(settings.completed())
        capsys.readouterr()
        errors._warned.clear()
        run_dir = run_files.create_run_dir(context)
        assert ("nearly the same photograph" in capsys.readouterr().err) == bool(copies)
        path = run_dir / "duplicates.csv"
        tables_of_pairs.append(path.read_text() if path.exists() else "")
        return run_dir

    first = start("first")
    start("second")
    assert len(searched) == 1
    os.utime(files[-1], ns=(1, 1))  # as if it had been written
    start("third")
    assert len(searched) == 2
    run = json.loads((first / "run.json").read_text())
    for run_json in tmp_path.glob("saved/*/run.json"):  # neither version nor table is trusted
        if copies:
            run_json.with_name("duplicates.csv").write_bytes(b"\x89PNG")
        else:
            run_json.write_text(json.dumps(run | {"version": "0"}))
    start("fourth")
    assert len(searched) == 3
    assert len(set(tables_of_pairs)) == 1
    assert bool(tables_of_pairs[0]) == bool(copies)
