"""Reading data roots, splitting people into folds, batches and their random draws."""

from __future__ import annotations

import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

import augmentation
import config
import dataset
from data import images, splits, tables
from labels import age_group
from runtime import loading
from runtime.errors import UserError
from tests.helpers import support
from training import fold as training_fold
from training import run as training_run
from utils import seeded

CPU = torch.device("cpu")


def test_one_row_per_photograph_whatever_its_extension_and_no_junk(train_root: Path) -> None:
    table = tables.read_train(train_root)
    assert len(table) == 7 * len(support.PEOPLE)
    assert not table["file"].str.contains(r"\._").any()
    assert {Path(f).suffix for f in table["file"]} == {".jpg", ".JPG", ".jpeg", ".png"}


def test_a_person_is_the_path_not_the_id(train_root: Path) -> None:
    table = tables.read_train(train_root)
    assert table["person"].nunique() == len(support.PEOPLE)
    twice = table[table["person"].str.startswith("003397")]
    assert set(zip(twice["person"], twice["gender"], twice["age"], strict=True)) == {
        ("003397_male_Asian_19", 0, 19.0),
        ("003397_female_Asian_58", 1, 58.0),
    }


def test_labels_of_all_tasks(train_root: Path) -> None:
    table = tables.read_train(train_root)
    row = table[
        (table["person"] == "001498-2_female_Asian_60") & (table["shot"] == "incorrect_mask")
    ].iloc[0]
    assert (row["mask"], row["gender"], row["age"], row["ageg"], row["main"]) == (
        1,
        1,
        60.0,
        2,
        6 + 3 + 2,
    )
    assert table.groupby("person")["mask"].apply(lambda m: sorted(m)).map(
        tuple
    ).unique().tolist() == [(0,) * 5 + (1, 2)]


@pytest.mark.parametrize(
    ("years", "group"),
    [(18, 0), (29, 0), (29.49, 0), (29.5, 1), (30, 1), (59, 1), (59.5, 2), (60, 2)],
)
def test_age_groups(years: float, group: int) -> None:
    assert age_group(years) == group


def test_age_filter_changes_training_labels_only(train_root: Path) -> None:
    table = tables.read_train(train_root)
    plain = dataset.label_tensors(table, ["main", "ageg", "mask"])
    moved = dataset.label_tensors(table, ["main", "ageg", "mask"], age_filter=58)
    changed = table["age"].between(58, 59).to_numpy()
    assert changed.any()
    assert torch.equal(plain["ageg"] != moved["ageg"], torch.tensor(changed))
    assert (moved["main"][changed] - plain["main"][changed]).unique().tolist() == [1]
    assert torch.equal(plain["mask"], moved["mask"])
    assert (table["ageg"].to_numpy()[changed] == 1).all()


def test_flat_folder_and_folder_names_without_a_table(
    tmp_path: Path, train_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nested = tables.read_train(train_root)
    flat = tmp_path / "flat"
    flat.mkdir()
    for _, row in nested.iterrows():
        shutil.copy(row["path"], flat / f"{row['person']}_{row['shot']}{Path(row['path']).suffix}")
    table = tables.read_train(flat)
    columns = ["person", "shot", "mask", "gender", "age", "ageg", "main"]
    assert table[columns].equals(nested[columns])
    assert capsys.readouterr().err.count("no train.csv") == 1


def test_the_table_wins_over_the_folder_name_with_one_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = support.make_train(tmp_path / "train", support.PEOPLE[:3])
    text = (
        (root / "train.csv").read_text().replace("000001,female,Asian,20", "000001,male,Asian,33")
    )
    (root / "train.csv").write_text(text)
    table = tables.read_train(root)
    first = table[table["person"] == "000001_female_Asian_20"]
    assert (first["gender"] == 0).all()
    assert (first["age"] == 33).all()
    err = capsys.readouterr().err
    assert err.count("warning") == 1
    assert "the table is taken: 1" in err


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("000002,male,Asian,61", "000002,man,Asian,61", "row 3"),
        ("000002,male,Asian,61", "000002,male,Asian,abc", "row 3"),
        ("000002,male,Asian,61", "000002,male,Asian,-3", "row 3"),
        ("000002_male_Asian_61", "../../etc", "row 3"),
        ("000002_male_Asian_61", "000001_female_Asian_20", "row 3"),
        ("gender", "sex", "gender"),
    ],
)
def test_bad_tables_are_refused_by_file_and_row(
    tmp_path: Path, old: str, new: str, told: str
) -> None:
    root = support.make_train(tmp_path / "train", support.PEOPLE[:3])
    table = root / "train.csv"
    table.write_text(table.read_text().replace(old, new))
    with pytest.raises(UserError, match=told) as caught:
        tables.read_train(root)
    assert "train.csv" in str(caught.value)


def test_names_are_compared_in_one_unicode_form(tmp_path: Path) -> None:
    name = "김 1"
    root = support.make_train(
        tmp_path / "train",
        [(unicodedata.normalize("NFD", name), "female", 20), *support.PEOPLE[:1]],
    )
    table = root / "train.csv"
    table.write_text(unicodedata.normalize("NFC", table.read_text()))
    read = tables.read_train(root)
    assert read["person"].nunique() == 2
    assert read["file"].map(lambda f: unicodedata.is_normalized("NFC", f)).all()
    assert all(os.path.exists(p) for p in read["path"])


# --- folds


def test_no_person_is_on_both_sides(train_root: Path) -> None:
    table = tables.read_train(train_root)
    folds = splits.assign_folds(table, 5, 42)
    table["fold"] = table["person"].map(folds)
    assert table.groupby("person")["fold"].nunique().max() == 1
    assert sorted(table["fold"].unique()) == [0, 1, 2, 3, 4]
    words = ["--train-root", str(train_root), "--cv", "5", *support.FAST]
    context = training_run.prepare_run(
        config.TrainSettings.parse(words, "train.py", "").completed()
    )
    # not by the table's own word for a person
    folders = [Path(path).parent.name for path in context.table["path"]]
    seen = []
    for number in range(5):
        fold = training_fold.FoldTrainer(context, number)
        held_out = {folders[row] for row in fold.valid_rows}
        assert held_out.isdisjoint(folders[row] for row in fold.batches.indices)
        seen += sorted(held_out)
    assert sorted(seen) == sorted(set(folders))


def test_the_file_systems_order_does_not_change_the_split(
    train_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = splits.assign_folds(tables.read_train(train_root), 5, 42)
    plain = Path.iterdir
    monkeypatch.setattr(
        Path,
        "iterdir",
        lambda self: iter(sorted(plain(self), key=lambda p: p.name[::-1], reverse=True)),
    )
    table = tables.read_train(train_root)
    assert splits.assign_folds(table.sample(frac=1, random_state=1), 5, 42) == before


def test_splits_hang_on_the_split_seed_and_never_change(train_root: Path) -> None:
    table = tables.read_train(train_root)
    folds = splits.assign_folds(table, 5, 42)
    assert folds != splits.assign_folds(table, 5, 43)
    # written down once: the same on any machine
    assert [folds[p] for p in sorted(folds)] == [1, 0, 0, 1, 2, 4, 3, 2, 3, 1, 4, 0]


def synthetic(groups: list[tuple[int, int]]) -> pd.DataFrame:
    return pd.DataFrame(
        [(f"p{i:03d}", g, a) for i, (g, a) in enumerate(groups)],
        columns=["person", "gender", "ageg"],
    )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 2)), min_size=2, max_size=60),
    st.integers(2, 7),
    st.integers(0, 99),
)
def test_every_stratum_and_the_total_are_balanced_to_one_person(
    groups: list[tuple[int, int]], folds: int, seed: int
) -> None:
    table = synthetic(groups)
    if folds > len(table):
        with pytest.raises(UserError, match="--cv"):
            splits.assign_folds(table, folds, seed)
        return
    table["fold"] = table["person"].map(splits.assign_folds(table, folds, seed))
    for _, part in [(None, table), *table.groupby(["gender", "ageg"])]:
        sizes = part["fold"].value_counts().reindex(range(folds), fill_value=0)
        assert sizes.max() - sizes.min() <= 1


def test_eight_people_and_five_folds(tmp_path: Path) -> None:
    root = support.make_train(tmp_path / "train", support.PEOPLE[:8])
    folds = splits.assign_folds(tables.read_train(root), 5, 42)
    assert len(folds) == 8
    assert sorted(np.bincount(list(folds.values()))) == [1, 1, 2, 2, 2]


# --- evaluation roots, answers


def test_info_csv_gives_the_order_from_the_folder_or_its_images(eval_root: Path) -> None:
    order = [row[0] for row in support.read_rows(eval_root / "info.csv")[1:]]
    assert order != sorted(order)
    assert tables.read_eval(str(eval_root))[0] == order
    assert tables.read_eval(str(eval_root / "images"))[0] == order


def test_without_info_csv_every_image_sorted_by_name(tmp_path: Path) -> None:
    root = support.make_eval(tmp_path / "eval")
    (root / "info.csv").unlink()
    (root / "images" / "._junk.jpg").write_bytes(b"x")
    names = tables.read_eval(str(root))[0]
    assert names == sorted(names)
    assert len(names) == 9


def test_info_csv_naming_a_missing_or_doubled_photograph_is_refused(tmp_path: Path) -> None:
    root = support.make_eval(tmp_path / "eval")
    rows = (root / "info.csv").read_text().splitlines()
    (root / "info.csv").write_text("\n".join([*rows, rows[1]]))
    with pytest.raises(UserError, match=r"info.csv: row 11.*that of row 2 too"):
        tables.read_eval(str(root))
    (root / "info.csv").write_text("\n".join([*rows, "nobody.jpg,0"]))
    with pytest.raises(UserError, match=r"info.csv: row 11.*nobody.jpg"):
        tables.read_eval(str(root))


# --- photographs


def test_photographs_are_upright_rgb(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20), "red")
    image.paste("blue", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise to view
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    turned = images.read_image(str(tmp_path / "turned.jpg"))
    assert turned.size == (20, 40)
    assert turned.getpixel((10, 5))[2] > 200  # type: ignore[index]
    image.convert("RGBA").save(tmp_path / "alpha.png")
    image.convert("L").save(tmp_path / "grey.png")
    Image.fromarray(np.full((4, 4), 32768, np.uint16)).save(tmp_path / "deep.png")
    assert images.read_image(str(tmp_path / "alpha.png")).getpixel((30, 5)) == (255, 0, 0)
    assert images.read_image(str(tmp_path / "grey.png")).mode == "RGB"
    assert images.read_image(str(tmp_path / "deep.png")).getpixel((1, 1)) == (128, 128, 128)


def test_an_unreadable_photograph_is_named_also_by_a_worker(tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_text("no picture")
    photos = dataset.ImageDataset(
        ["bad.jpg"], [str(bad)], [augmentation.View(augmentation.forms("base", 32).valid)]
    )
    for workers in (0, 1):
        with (
            pytest.raises(UserError) as caught,
            loading.make_loader(photos, dataset.EpochBatchSampler([0], 1), workers, CPU) as loader,
        ):
            list(loader)
        assert str(caught.value).startswith(str(bad))
        assert "Traceback" not in str(caught.value)


def test_crops_are_torchvisions(tmp_path: Path) -> None:
    support.paint(tmp_path / "a.jpg", 1, quality=95)
    photo = images.read_image(str(tmp_path / "a.jpg"))
    theirs = v2.Compose([v2.CenterCrop(384), v2.RandomResizedCrop(32), v2.RandAugment(2, 9)])
    ours = augmentation.forms("random", 32).train
    for draw in range(8):
        with seeded(draw):
            expected = augmentation.pixels(theirs(photo))
        with seeded(draw):
            assert (augmentation.pixels(ours(photo, None)) == expected).all()


def photos_of(root: Path, transform: str = "random") -> dataset.ImageDataset:
    table = tables.read_train(root)
    view = augmentation.View(augmentation.forms(transform, 32).train, ("train", 42, 0))
    return dataset.ImageDataset(table["file"].tolist(), table["path"].tolist(), [view])


def epoch_pixels(photos: dataset.ImageDataset, epoch: int, workers: int) -> torch.Tensor:
    batches = dataset.EpochBatchSampler(range(20), 6, ("fold", 42, 0), least=2)
    batches.epoch = epoch
    with loading.make_loader(photos, batches, workers, CPU) as loader:
        found = {
            int(i): pixels
            for pairs, views in loader
            for i, pixels in zip(pairs[:, 0], views[0], strict=True)
        }
    return torch.stack([found[i] for i in range(20)])


def test_random_draws_do_not_hang_on_workers_but_on_the_epoch(train_root: Path) -> None:
    photos = photos_of(train_root)
    torch.manual_seed(0)
    alone = epoch_pixels(photos, 0, 0)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(alone, epoch_pixels(photos, 0, 2))
    assert not torch.equal(alone, epoch_pixels(photos, 1, 0))
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(1)), (
        "reading photographs moved the global generator, dropout's"
    )


def test_persistent_workers_see_each_new_epoch(train_root: Path) -> None:
    photos = photos_of(train_root)
    batches = dataset.EpochBatchSampler([3], 1)
    seen = []
    with loading.make_loader(photos, batches, 1, CPU) as loader:
        for epoch in range(3):
            batches.epoch = epoch
            seen += [views[0] for _, views in loader]
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


@given(st.integers(2, 50), st.integers(2, 9), st.integers(0, 3))
def test_batches_hold_every_photograph_once_and_none_alone(
    count: int, size: int, start: int
) -> None:
    batches = dataset.EpochBatchSampler(range(count), size, ("x",), least=2)
    whole = list(batches)
    assert sorted(i for batch in whole for _, i, _ in batch) == list(range(count))
    assert len(whole) == len(batches)
    assert min(map(len, whole)) >= 2
    batches.start = start
    assert list(batches) == whole[start:]
