"""Laws that hold for any input: tables, names of checkpoints, folds, scores, votes."""

from __future__ import annotations

import csv
import io
import math
import tempfile
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

import checkpoint
import config
import ensemble
import metrics
import registries
from data import splits, tables
from data.csv_tables import csv_cell
from labels import GENDERS, TASKS
from runtime.errors import UserError, printable

few = settings(max_examples=60, deadline=None)
folder = tempfile.TemporaryDirectory(prefix="properties-")
WHERE = Path(folder.name)

# --- tables

text = st.text(st.characters(codec="utf-8", exclude_characters="\0\ufffd\ufeff\r"), max_size=12)
names = text.map(lambda t: unicodedata.normalize("NFC", t).strip()).filter(
    lambda t: bool(t) and t not in (".", "..") and not set(t) & set("/\\")
)
years = st.one_of(st.integers(0, 120).map(str), st.floats(0, 120).map(lambda x: f"{x:.3f}"))
person = st.tuples(names, st.sampled_from(["male", "female", "Male", " FEMALE "]), years, text)


def write_table(
    rows: list[list[str]], delimiter: str, ending: str, quoting: int, mark: str
) -> Path:
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=delimiter, lineterminator=ending, quoting=quoting).writerows(rows)  # type: ignore[arg-type]
    (WHERE / "train.csv").write_bytes((mark + buffer.getvalue()).encode())
    return WHERE / "train.csv"


layout = st.tuples(
    st.sampled_from(",;\t"),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.sampled_from(["", "\ufeff"]),
)


@few
@given(st.lists(person, min_size=1, max_size=8, unique_by=lambda p: p[0]), layout)
def test_a_table_of_people_is_read_as_it_was_written(
    people: list[tuple[str, str, str, str]], how: tuple[str, str, int, str]
) -> None:
    rows = [[f"{race}x", gender, race, age, path] for path, gender, age, race in people]
    table = tables.read_people(write_table([["id", "gender", "race", "age", "path"], *rows], *how))
    assert table["person"].tolist() == [p[0] for p in people]
    assert table["gender"].tolist() == [GENDERS.index(p[1].strip().lower()) for p in people]
    assert table["years"].tolist() == [float(p[2]) for p in people]
    assert table.index.tolist() == list(range(2, 2 + len(people)))


@few
@given(st.lists(st.sampled_from(["good", "blank", "commas", "quoted"]), max_size=8), layout)
def test_a_bad_row_is_named_as_a_spreadsheet_counts(
    before: list[str], how: tuple[str, str, int, str]
) -> None:
    kinds = {
        "blank": [],
        "commas": ["", "", ""],
        "quoted": ['a\n"b\r\n', "male", "20"],
        "good": ["a", "male", "20"],
    }
    rows = [
        [f"{n}{row[0]}", *row[1:]] if row and row[0] else row
        for n, row in enumerate(kinds[kind] for kind in before)
    ]
    table = write_table([["path", "gender", "age"], *rows, ["last", "male", "-1"]], *how)
    with pytest.raises(UserError, match=f"row {len(before) + 2}: gender 'male', age '-1'"):
        tables.read_people(table)


@few
@given(st.binary(max_size=200))
def test_any_bytes_are_a_table_or_refused_in_one_printable_line(data: bytes) -> None:
    (WHERE / "any.csv").write_bytes(b"path,gender,age\n" + data)
    said = str(WHERE / "any.csv")
    try:
        tables.read_people(WHERE / "any.csv")
    except UserError as error:
        said = str(error)
    assert said.startswith(str(WHERE / "any.csv"))
    assert said.isprintable()


@given(st.text(st.characters()))
@example("\x1b[2J\u202e\udcff")
def test_printable_text_is_printable_and_stays_so(anything: str) -> None:
    shown = printable(anything)
    assert shown.isprintable()
    assert printable(shown) == shown
    assert (shown == anything) == anything.isprintable()
    assert csv_cell(anything)[:1] not in set("=+-@\t\r")


# --- names of checkpoints

rates = st.floats(min_value=1e-12, max_value=1e6, allow_nan=False)


@given(
    st.sampled_from(sorted(registries.MODELS)),
    st.sampled_from(sorted(TASKS)),
    st.sampled_from(sorted(registries.TRANSFORMS)),
    st.sampled_from(sorted(registries.OPTIMIZERS)),
    st.sampled_from(sorted(registries.LOSSES)),
    rates,
    st.tuples(
        st.integers(0, 200), st.integers(1, 10**6), st.integers(2, 10**5), st.integers(0, 2**64)
    ),
    st.floats(0, 1),
    st.floats(0, 1e9),
)
@example("VanillaResNet", "age", "base", "sgd", "mseloss", 1e-5, (0, 1, 2, 0), 1.0, math.inf)
def test_a_checkpoints_name_tells_every_setting_it_was_written_with(
    model: str,
    task: str,
    transform: str,
    optim: str,
    crit: str,
    lr: float,
    numbers: tuple[int, int, int, int],
    f1: float,
    loss: float,
) -> None:
    fold, epoch, batch, seed = numbers
    info = checkpoint.CheckpointInfo(
        model,
        task,
        transform,
        registries.MODELS[model].backbone,
        224,
        None,
        fold,
        epoch,
        round(f1, 4),
        round(loss, 4),
    )
    asked = config.OptimSettings(
        batch_size=batch, lr=lr, optim_type=optim, loss_type=crit, seed=seed
    )
    name = checkpoint.file_name(info, asked)
    assert checkpoint.info_from_name(name) == info
    told = checkpoint.FILE_NAME.fullmatch(name)
    assert told is not None
    assert (float(told["lr"]), int(told["batch_size"]), int(told["seed"])) == (lr, batch, seed)
    assert (told["optim_type"], told["loss_type"]) == (optim, crit)
    assert "/" not in name


@pytest.mark.parametrize(
    "piece", ["f1(nan)", "f1(inf)", "f1(x)", "loss(x)", "ep(1x)", "task(cat)", "trans(cat)"]
)
def test_a_name_that_tells_nonsense_is_none(piece: str) -> None:
    info = checkpoint.CheckpointInfo(
        "VanillaResNet", "main", "base", "resnet50", 224, None, 0, 1, 0.5, 1.0
    )
    name = checkpoint.file_name(info, config.OptimSettings(lr=0.1, loss_type="focalloss"))
    start = name.index(piece.partition("(")[0] + "(")
    assert (
        checkpoint.info_from_name(name[:start] + piece + name[name.index(")", start) + 1 :]) is None
    )
    assert checkpoint.info_from_name(name.replace("Fold00", "Fold" + "9" * 5000)) is None


# --- folds

group = st.tuples(st.integers(0, 1), st.integers(0, 2))


@few
@given(
    st.lists(group, min_size=2, max_size=40), st.integers(2, 6), st.integers(0, 99), st.randoms()
)
def test_folds_hang_on_the_people_alone(
    groups: list[tuple[int, int]], folds: int, seed: int, draw: object
) -> None:
    assume(folds <= len(groups))
    table = pd.DataFrame(
        [(f"p{i}", g, a) for i, (g, a) in enumerate(groups)], columns=["person", "gender", "ageg"]
    )
    dealt = splits.assign_folds(table, folds, seed)
    assert set(dealt) == set(table["person"])
    assert set(dealt.values()) == set(range(folds))
    # more photographs, another order
    mixed = pd.concat([table, table.iloc[::2], table]).sample(frac=1, random_state=seed)
    assert splits.assign_folds(mixed, folds, seed) == dealt


# --- scores and votes


@given(
    st.sampled_from(["main", "mask", "gender", "ageg"]), st.integers(1, 60), st.integers(0, 9999)
)
def test_scores_are_scikit_learns_for_every_task(task: str, count: int, seed: int) -> None:
    classes = TASKS[task].outputs
    draw = np.random.default_rng(seed)
    some = draw.choice(classes, draw.integers(1, classes + 1), replace=False)
    truth, answers = draw.choice(some, count), draw.integers(0, classes, count)
    found = metrics.score(task, answers, truth)
    assert found.macro_f1 == pytest.approx(f1_score(truth, answers, average="macro"), abs=1e-9)
    assert found.accuracy == pytest.approx(accuracy_score(truth, answers), abs=1e-9)
    seen = np.union1d(truth, answers)
    assert metrics.class_f1(found.matrix)[seen] == pytest.approx(
        f1_score(truth, answers, average=None, labels=seen), abs=1e-9
    )
    order = draw.permutation(count)
    assert metrics.score(task, answers[order], truth[order]).macro_f1 == pytest.approx(
        found.macro_f1, abs=1e-12
    )


shapes = st.tuples(
    st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(2, 6), st.integers(0, 9999)
)


def drawn(shape: tuple[int, int, int, int, int]) -> np.ndarray:
    members, views, images, classes, seed = shape
    return np.random.default_rng(seed).dirichlet(np.ones(classes), (members, views, images))


def votes(array: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    both = [ensemble.vote(kind, "main", array, list(weights)) for kind in config.METHODS]
    return {method: answers for voted in both for method, answers in voted.items()}


@given(shapes)
def test_votes_do_not_hang_on_order_copies_or_the_weights_scale(
    shape: tuple[int, int, int, int, int],
) -> None:
    array, draw = drawn(shape), np.random.default_rng(shape[-1] + 1)
    weights = draw.random(len(array)) + 0.1
    plain = votes(array, weights)
    order, images = draw.permutation(len(array)), draw.permutation(array.shape[2])
    others = {
        "order": votes(array[order], weights[order]),
        "copies": votes(np.repeat(array, 2, 0), np.repeat(weights, 2)),
        "views": votes(array[:, ::-1], weights),
        "scale": votes(array, weights * 7),
    }
    assert all((plain[m] == found[m]).all() for found in others.values() for m in plain)
    moved = votes(array[:, :, images], weights)
    assert all((moved[m] == plain[m][images]).all() for m in plain)
    renamed = votes(array[..., ::-1], weights)  # random values have no ties
    assert all((renamed[m] == array.shape[3] - 1 - plain[m]).all() for m in plain)


@given(shapes, st.integers(0, 5))
def test_a_unanimous_vote_is_everybodys_answer(
    shape: tuple[int, int, int, int, int], winner: int
) -> None:
    array = drawn(shape)
    winner %= array.shape[3]
    array[..., winner] = array.sum(-1) + 0.1
    for answers in votes(array, np.ones(len(array))).values():
        assert (answers == winner).all()


@given(st.integers(1, 4), st.integers(0, 9999), st.sampled_from(["mask", "gender", "ageg"]))
def test_parts_of_main_stay_distributions_and_commute_with_the_mean(
    members: int, seed: int, task: str
) -> None:
    array = drawn((members, 2, 3, 18, seed))
    part = ensemble.marginalize_main(array, task)
    assert part.sum(-1) == pytest.approx(np.ones(part.shape[:-1]))
    mean = ensemble.marginalize_main(ensemble.arithmetic(array), task)
    assert ensemble.arithmetic(part) == pytest.approx(mean)
