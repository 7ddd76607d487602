"""Cut off and mutate valid files for every reader: each outcome must be a right reading or a
UserError of one line.

Every truncation of each valid file comes first, then random mutations: bytes changed, taken out,
put in, moved, lengths and counts made extreme; in zip files (.npz, .pth) also inside a member, with
sums that fit again. All in this process under faulthandler, so that a crash of a decoder ends the
script with a traceback and a non-zero exit code (the case lies in the folder it names). `python
-m tests.helpers.fuzz_readers --cases 200000`
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import io
import json
import random
import shutil
import sys
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

import checkpoint
import config
import engine
import ensemble
import optim
import out_of_fold
import registries
import run_directory
from data import images, label_fixes, tables
from inference import predictor, submission
from labels import TASKS
from runtime.errors import UserError
from training import fold_state

SLOW = 600  # seconds after which a thousand cases count as hanging
EXTREMES = (
    b"\0",
    b"\xff",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\x80\0\0\0",
    b"\0" * 8,
    b"-1",
    b"nan",
    b"1e999",
    b"9" * 40,
    b"\n",
    b"\r",
    b'"',
    b",",
    b";",
    b"../",
    b"\x1b[2J",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"{",
    b"[" * 2000,
    b"null",
    b"\xff\xd8",
    b"\xff\xd9",
    b"\xff\xda",
    b"IEND\xaeB`\x82",
    b"PK\x05\x06",
    b"(",
    b")",
    b"\xd9\xa3",
)


@dataclass(frozen=True)
class Reader:
    """A reader under test: valid files, and a check that reads one and raises AssertionError for a
    wrong reading.
    """

    name: str
    valid: list[bytes]
    check: Callable[[bytes], None]


# --- the cases


def mutated(draw: random.Random, data: bytes) -> bytes:
    """One to four changes at random places."""
    for _ in range(draw.randint(1, 4)):
        at, length = draw.randrange(len(data) + 1), draw.choice((1, 1, 2, 4, 16, 200))
        kind = draw.randrange(7)
        if kind == 0:
            data = data[:at] + draw.randbytes(length) + data[at + length :]
        elif kind == 1:
            data = data[:at] + data[at + length :]
        elif kind == 2:
            data = data[:at] + draw.choice(EXTREMES) + data[at:]
        elif kind == 3:
            put = draw.choice(EXTREMES)
            data = data[:at] + put + data[at + len(put) :]
        elif kind == 4 and at < len(data):
            data = data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
        elif kind == 5:
            other = draw.randrange(len(data) + 1)
            data = data[:at] + data[other : other + length] + data[at:]
        else:
            data = data[:at]
    return data


def mutated_inside(draw: random.Random, data: bytes) -> bytes:
    """A zip file with one member mutated, its sums right again; other files as by `mutated`."""
    if data[:2] != b"PK" or draw.random() < 0.3:
        return mutated(draw, data)
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    changed = draw.choice(list(parts))
    parts[changed] = mutated(draw, parts[changed])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as new:
        for name, content in parts.items():
            new.writestr(name, content)
    return buffer.getvalue()


def cases(reader: Reader, count: int, seed: int) -> Iterator[bytes]:
    """Every truncation of the valid files (evenly thinned out to half of `count` where there are
    more), then mutations.
    """
    cuts = [(data, length) for data in reader.valid for length in range(len(data))]
    draw = random.Random(f"{seed}/{reader.name}")
    chosen = cuts if len(cuts) <= count // 2 else draw.sample(cuts, count // 2)
    for data, length in chosen:
        yield data[:length]
    for _ in range(count - len(chosen)):
        yield mutated_inside(draw, draw.choice(reader.valid))


# --- the readers


def saved(save: Callable[[io.BytesIO], object]) -> bytes:
    """What a function writes into a file."""
    buffer = io.BytesIO()
    save(buffer)
    return buffer.getvalue()


def table_readers(folder: Path) -> list[Reader]:
    """train.csv and info.csv."""
    head = "id,gender,race,age,path\n"
    rows = "000001,female,Asian,45,000001_female_Asian_45\n"
    rows += "000002,male,Asian,20.0,000002_male_Asian_20\n"
    quoted = '"' + head[:-1].replace(",", '","') + '"\n' + rows
    people = (head + rows, (head + rows).replace(",", ";").replace("\n", "\r\n"), quoted)
    (folder / "images").mkdir()
    names = ["a.jpg", "=b 1.png", "김.jpeg"]
    for name in names:
        (folder / "images" / name).touch()

    def check_people(data: bytes) -> None:
        (folder / "train.csv").write_bytes(data)
        table = tables.read_people(folder / "train.csv")
        assert table["person"].is_unique
        assert table["person"].str.len().min() > 0
        assert table["gender"].isin([0, 1]).all()
        assert table["years"].between(0, 120).all()
        assert not table["person"].str.contains(r"[/\\]").any()

    def check_info(data: bytes) -> None:
        (folder / "info.csv").write_bytes(data)
        found, paths = tables.read_eval(str(folder))
        assert len(found) == len(set(paths)) == len(paths) > 0
        assert all(Path(path).parent == folder / "images" for path in paths)

    info = "\ufeffImageID,ans\r\n" + "".join(f'"{name}",0\r\n' for name in names)
    return [
        Reader("train.csv", [text.encode() for text in people], check_people),
        Reader("info.csv", [info.encode(), info[1:].replace("\r", "").encode()], check_info),
    ]


def image_readers(folder: Path) -> list[Reader]:
    """Photographs in the formats and modes there are."""
    small = Image.fromarray(
        np.random.RandomState(0).randint(0, 256, (6, 5, 3), dtype=np.uint8)
    ).resize((15, 20))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "made"
    kinds: list[tuple[Image.Image, str, dict[str, object]]] = [
        (small, "JPEG", {"exif": exif}),
        (small, "JPEG", {"progressive": True}),
        (small.convert("CMYK"), "JPEG", {}),
        (small, "PNG", {"exif": exif}),
        (small.convert("P"), "PNG", {"transparency": 3}),
        (small.convert("LA"), "PNG", {}),
        (Image.fromarray(np.arange(300, dtype=np.uint16).reshape(20, 15) * 200), "PNG", {}),
        (small, "GIF", {"save_all": True, "append_images": [small]}),
        (small, "WEBP", {}),
        (small, "BMP", {}),
        (small, "TIFF", {}),
    ]

    def check(data: bytes) -> None:
        (folder / "a.jpg").write_bytes(data)
        problem = images.inspect_image(str(folder / "a.jpg"))[0]
        photo = images.read_image(str(folder / "a.jpg"))
        assert not problem, "the quick check refuses what the reader takes"
        assert photo.mode == "RGB"
        assert len(photo.tobytes()) == 3 * photo.width * photo.height > 0

    files = [saved(partial(i.save, format=k, **s)) for i, k, s in kinds]  # type: ignore[arg-type]
    return [Reader("image", files, check)]


def checkpoints(folder: Path) -> list[Reader]:
    """.pth files, their names, run.json, validation.npz."""
    weights = {
        "linear.weight": torch.arange(12.0).reshape(3, 4),
        "batchnorm.num_batches_tracked": torch.tensor(3),
    }
    info = checkpoint.CheckpointInfo(
        "VanillaResNet",
        "main",
        "base",
        "resnet18",
        224,
        224,
        1,
        3,
        0.5,
        1.2,
        {"macro_f1": 0.5},
        ["p1"],
    )
    checkpoint.save_checkpoint(folder / "whole.pth", weights, info)
    whole = (folder / "whole.pth").read_bytes()
    bare = saved(lambda f: torch.save(weights, f))
    old = saved(lambda f: torch.save(weights, f, _use_new_zipfile_serialization=False))
    name = checkpoint.file_name(info, config.OptimSettings(lr=1e-5, loss_type="focalloss"))
    run = {
        "started": "2026-11-23T23:15:00",
        "settings": {"task": "main"},
        "data": {
            "photographs_per_class": dict.fromkeys(TASKS["main"].classes, 5),
            "median_age": 40.0,
        },
    }
    one = ensemble.Probabilities(
        "main", np.eye(18, dtype=np.float32)[None, None, :2], ["m"], [0], [0.5], ["a", "b"]
    )
    arrays = {
        "files": np.array(["a.jpg", "b.jpg"]),
        "probs_main": np.full((2, 2, 18), 1 / 18, np.float32),
    }

    def check_file(data: bytes) -> None:
        (folder / name).write_bytes(data)
        found = checkpoint.load_checkpoint(folder / name)
        assert found.weights
        for tensor in found.weights.values():
            if tensor.layout == torch.strided:
                tensor.to_dense().double().sum().item()  # touches every byte

    def check_name(data: bytes) -> None:
        told = checkpoint.info_from_name(data.decode("utf-8", errors="replace"))
        assert told is None or (
            told.model in registries.MODELS and np.isfinite(told.macro_f1) and told.epoch >= 0
        )

    def check_run(data: bytes) -> None:
        (folder / "run.json").write_bytes(data)
        assert isinstance(run_directory.read_run_json(folder), dict)
        assert np.isfinite(run_directory.start_time(folder))
        assert 0 <= predictor.most_frequent_class(one, folder)[0] < 18

    def check_validation(data: bytes) -> None:
        (folder / fold_state.VALIDATION_FILE).write_bytes(data)
        read = fold_state.load_validation(folder, "main")
        assert read is not None
        assert read[1].shape[1:] == (len(read[0]), 18)

    return [
        Reader("checkpoint", [whole, bare, old], check_file),
        Reader("checkpoint's name", [name.encode()], check_name),
        Reader(
            "run.json", [json.dumps(run).encode(), json.dumps(run, indent=2).encode()], check_run
        ),
        Reader(
            "validation.npz",
            [
                saved(lambda f: np.savez_compressed(f, **arrays)),  # type: ignore[arg-type]
                saved(lambda f: np.savez(f, **arrays)),  # type: ignore[arg-type]
            ],
            check_validation,
        ),
    ]


def predictions(folder: Path) -> list[Reader]:
    """probs.npz."""
    made = []
    for task, width in (("main", 18), ("age", 1)):
        array = np.random.RandomState(0).rand(2, 1, 3, width).astype(np.float32)
        array /= array.sum(-1, keepdims=True) if width > 1 else 1
        probs = ensemble.Probabilities(
            task, array, ["fold00/a.pth", "fold01/b.pth"], [0, 1], [0.5, 0.6], ["x", "y", "z"]
        )
        submission.save_probabilities(folder, probs)
        made.append((folder / submission.PROBS).read_bytes())

    def check(data: bytes) -> None:
        (folder / submission.PROBS).write_bytes(data)
        probs = submission.load_probabilities(folder)
        with np.errstate(all="ignore"):
            voted = ensemble.vote("softvoting", probs.task, probs.array, probs.weights)
        assert {len(answers) for answers in voted.values()} == {len(probs.images)}

    return [Reader("probs.npz", made, check)]


Training = tuple[torch.nn.Module, torch.optim.Optimizer, torch.amp.GradScaler]


def small_training() -> Training:
    """The smallest there is: weights, a batch norm's counts, and Adam's state after one step."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    groups = [{"params": list(layer.parameters()), "scale": 1.0} for layer in model]
    optimizer = optim.make_optimizer("adam", groups, 1e-3, 0.0)
    step(model, optimizer)
    return model, optimizer, torch.amp.GradScaler("cpu", enabled=False)


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """One step of training."""
    model(torch.rand(5, 4)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def states(folder: Path) -> list[Reader]:
    """state.pt, beside the validation.npz that belongs to it."""
    kept, history = [checkpoint.KeptCheckpoint("a.pth", 2, 0.4)], [{"epoch": 1.0}, {"epoch": 2.0}]
    state = fold_state.FoldState(1, 2, 3, [0.5, 1.0, 0.0, 1.0, -1.0], kept, history)
    state.probabilities = {"main": [np.full((2, 18), 1 / 18, np.float32)] * 2}
    fold_state.save_validation(folder, state, ["a.jpg", "b.jpg"])
    fold_state.save_fold_state(folder, state, fold_state.training_state_dict(*small_training()))

    def check(data: bytes) -> None:
        (folder / fold_state.STATE_FILE).write_bytes(data)
        read = fold_state.load_fold_state(folder)
        assert read is not None
        training = small_training()
        fold_state.load_training_state(read[1], *training, str(folder / fold_state.STATE_FILE))
        step(*training[:2])
        found = read[0]
        assert min(found.fold, found.epoch, found.step) >= 0
        assert sorted(found.kept, key=checkpoint.rank)[:1] == found.kept[:1]
        assert all(len(rows) == found.epoch for rows in found.probabilities.values())
        assert engine.RunningLoss(torch.device("cpu"), found.sums).kept() is not None

    return [Reader("state", [(folder / fold_state.STATE_FILE).read_bytes()], check)]


def told_tables(folder: Path) -> list[Reader]:
    """What users write or keep beside a run: oof.csv, boxes, label fixes, answers."""
    files = [
        f"images/{person}/{shot}.jpg" for person in ("p1", "p2") for shot in ("mask1", "normal")
    ]
    table = tables.with_labels(
        pd.DataFrame(
            {
                "file": files,
                "path": files,
                "person": ["p1", "p1", "p2", "p2"],
                "mask": [0, 2, 0, 2],
                "gender": [0, 0, 1, 1],
                "years": [20.0, 20.0, 61.0, 61.0],
                "fold": [0, 0, 1, 1],
            }
        )
    )
    out_of_fold.write_oof(folder, "main", table, np.full((4, 18), 1 / 18))
    boxes = "file,left,top,right,bottom\n" + "".join(f"{file},1,2.0,30,40\n" for file in files)
    fixes = "path,column,value\np1,gender,female\np2,age,30\nimages/p1/normal.jpg,mask,wear\n"
    answers = "ImageID,ans\n" + "".join(f"{file},{number}\n" for number, file in enumerate(files))

    def check_oof(data: bytes) -> None:
        (folder / out_of_fold.OOF_FILE).write_bytes(data)
        oof = out_of_fold.read_oof(folder, "main")
        assert oof is not None
        out_of_fold.score_line("main", *oof)

    def check_boxes(data: bytes) -> None:
        (folder / "boxes.csv").write_bytes(data)
        found = tables.read_boxes(str(folder / "boxes.csv"), files, files)
        assert all(box[0] < box[2] and box[1] < box[3] for box in found.values())

    def check_fixes(data: bytes) -> None:
        (folder / "fixes.csv").write_bytes(data)
        fixed, counts = label_fixes.apply_fixes(table, folder / "fixes.csv")
        assert sum(counts.values()) > 0
        assert fixed["main"].between(0, 17).all()
        assert fixed["years"].between(0, 120).all()

    def check_answers(data: bytes) -> None:
        (folder / "answers.csv").write_bytes(data)
        assert set(tables.read_labels(str(folder / "answers.csv"), files, "main")) <= set(range(18))

    short = "image,mask\nimages/p1/normal.jpg,wear\n"
    return [
        Reader("oof.csv", [(folder / out_of_fold.OOF_FILE).read_bytes()], check_oof),
        Reader("boxes", [boxes.encode()], check_boxes),
        Reader("label fixes", [fixes.encode(), short.encode()], check_fixes),
        Reader("answers", [answers.encode()], check_answers),
    ]


def readers(folder: Path) -> list[Reader]:
    """All readers, each in a folder of its own."""
    made: list[Reader] = []
    for make in (table_readers, image_readers, checkpoints, predictions, states, told_tables):
        (folder / make.__name__).mkdir()
        made += make(folder / make.__name__)
    return made


# --- the verdict


def judge(check: Callable[[bytes], None], data: bytes) -> str:
    """`read`, `refused`, or what was unclean about it."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # warnings
            check(data)
    except UserError as error:
        clean = str(error).isprintable() and len(str(error)) < 1000 and ": " in str(error)
        return "refused" if clean else f"unclean message: {str(error)[:300]!r}"
    except Exception as error:
        return f"unclean {type(error).__name__}: {str(error)[:300]}"
    return "read"


def fuzz(reader: Reader, count: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Counts of the verdicts on `count` cases, and every unclean one in words."""
    verdicts: Counter[str] = Counter()
    unclean: list[str] = []
    for data in reader.valid:
        if judge(reader.check, data) != "read":
            unclean.append(f"{reader.name}: a valid file is not read: {judge(reader.check, data)}")
    for number, data in enumerate(cases(reader, count, seed)):
        if number % 1000 == 0:
            faulthandler.dump_traceback_later(SLOW, exit=True)
        verdict = judge(reader.check, data)
        verdicts[verdict if verdict in ("read", "refused") else "unclean"] += 1
        if verdict.startswith("unclean"):
            unclean.append(f"{reader.name}, case {number}: {verdict}")
    faulthandler.cancel_dump_traceback_later()
    return verdicts, unclean


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=8000, help="of all readers together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="the one reader of this name")
    asked = parser.parse_args()
    faulthandler.enable()
    warnings.simplefilter("ignore")
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    print(f"cases are written below {folder}")
    chosen = [r for r in readers(folder) if asked.only in (None, r.name)]
    bad = 0
    print(f"{'reader':<18} {'cases':>8} {'read':>8} {'refused':>8} {'unclean':>8} {'crashes':>8}")
    for reader in chosen:
        verdicts, unclean = fuzz(reader, asked.cases // len(chosen), asked.seed)
        told = [verdicts.total(), verdicts["read"], verdicts["refused"], verdicts["unclean"], 0]
        print(
            f"{reader.name:<18} " + " ".join(f"{n:>8}" for n in told),
            *unclean[:5],
            sep="\n  ",
            flush=True,
        )
        bad += len(unclean)
    shutil.rmtree(folder)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
