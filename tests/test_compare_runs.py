"""tools/compare_runs: all runs in a table, paired differences, pairs that vote well together."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import ensemble
import out_of_fold
from runtime.errors import UserError
from tools import compare_runs


@pytest.fixture
def saved(tree: Path, tmp_path: Path) -> Path:
    """Three runs: one, its twin with a certain truth for some photographs, one without oof.csv."""
    for name in ("", "_better", "_unfinished"):
        shutil.copytree(tree, tmp_path / f"{tree.name}{name}")
    better = tmp_path / f"{tree.name}_better"
    oof = out_of_fold.read_oof(better, "main")
    assert oof is not None
    predictions = oof.predictions.copy()
    half = np.arange(len(predictions)) % 2 == 0
    predictions[half] = np.eye(18)[oof.rows["main"].to_numpy()[half]]
    out_of_fold.write_oof(better, "main", oof.rows.reset_index(drop=True), predictions)
    content = json.loads((better / "run.json").read_text())
    content["settings"]["lr"] = 0.123
    (better / "run.json").write_text(json.dumps(content))
    (tmp_path / f"{tree.name}_unfinished" / "oof.csv").unlink()
    return tmp_path


def test_all_runs_stand_in_one_table_with_what_differs(
    saved: Path, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = saved / "table.csv"
    assert compare_runs.main([str(saved), "--csv", str(out)]) == 0
    table = pd.read_csv(out).set_index("run")
    assert set(table.columns) == {
        *("task", "macro F1", "95 % low", "95 % high", "mask", "gender", "ageg", "time"),
        *("--lr", "note"),
    }
    oof = out_of_fold.read_oof(saved / tree.name, "main")
    assert oof is not None
    score = out_of_fold.score_rows("main", *oof).macro_f1
    assert table.loc[tree.name, "macro F1"] == pytest.approx(score)
    assert table.loc[f"{tree.name}_better", "macro F1"] > score
    line = out_of_fold.score_line("main", *oof)
    ends = line.partition("[")[2].partition("]")[0].split(", ")  # 0.1234, 0.2345
    assert [f"{table.loc[tree.name, f'95 % {end}']:.4f}" for end in ("low", "high")] == ends
    mask = ensemble.marginalize_main(oof.predictions, "mask")
    f1 = out_of_fold.score_rows("mask", oof.rows, mask).macro_f1
    assert table.loc[tree.name, "mask"] == pytest.approx(f1)
    assert table.loc[f"{tree.name}_better", "--lr"] == 0.123
    assert math.isnan(table.loc[f"{tree.name}_unfinished", "macro F1"])
    printed = capsys.readouterr().out
    assert re.search(f"{tree.name} +main +{score:.4f} +{float(ends[0]):.3f}", printed)
    assert re.search(f"{tree.name}_unfinished +main +- +-", printed)
    assert f"{tree.name}_unfinished: no oof.csv (not finished)" in printed
    mixed = f"{tree.name} + {tree.name}_better", f"{tree.name}_better + {tree.name}"
    assert any(f"{pair}: macro F1" in printed for pair in mixed)


def test_differences_are_paired_where_folds_are_shared(
    saved: Path, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folds = pd.read_csv(saved / tree.name / "oof.csv")
    other = saved / f"{tree.name}_otherfolds"
    shutil.copytree(saved / tree.name, other)
    folds.assign(fold=(folds["fold"] + 1) % 3).to_csv(other / "oof.csv", index=False)
    out = saved / "against.csv"
    assert compare_runs.main([str(saved), "--against", tree.name, "--csv", str(out)]) == 0
    table = pd.read_csv(out).set_index("run")
    runs = [out_of_fold.read_oof(saved / f"{tree.name}{name}", "main") for name in ("", "_better")]
    assert runs[0] is not None
    scores = [out_of_fold.score_rows("main", *run).macro_f1 for run in runs if run is not None]
    row = table.loc[f"{tree.name}_better"]
    assert row["difference"] == pytest.approx(scores[1] - scores[0])
    assert row["95 % low"] <= scores[1] - scores[0] <= row["95 % high"]
    decided = [ensemble.decide("main", run.predictions) for run in runs if run is not None]
    assert row["disagree"] == pytest.approx((decided[0] != decided[1]).mean())
    means = [run.predictions[run.rows["file"].argsort()] for run in runs if run is not None]
    rows = runs[0].rows.sort_values("file")
    mean = out_of_fold.score_rows("main", rows, (means[0] + means[1]) / 2)
    assert row["mean's F1"] == pytest.approx(mean.macro_f1)
    printed = capsys.readouterr().out
    assert re.search(f"{tree.name}_better .* [+]{scores[1] - scores[0]:.4f} ", printed)
    assert f"against {tree.name}, macro F1 {scores[0]:.4f}" in printed
    assert f"{other.name}: not paired: other folds" in printed
    assert "other folds" in table.loc[other.name, "note"]
    assert "not finished" in table.loc[f"{tree.name}_unfinished", "note"]


def test_a_paired_interval_is_that_of_the_difference(saved: Path, tree: Path) -> None:
    run = compare_runs.load_run(saved / tree.name)
    assert run.finished is not None
    table = compare_runs.table_against(run.finished, [run])
    for name in ("difference", "95 % low", "95 % high", "disagree"):
        assert table.loc[0, name] == 0  # from itself: nothing is left to chance


def test_runs_for_years_disagree_by_age_group(tree: Path) -> None:
    oof = out_of_fold.read_oof(tree, "main")
    assert oof is not None
    years = oof.rows[["age"]].to_numpy(float)
    first, same, other = (
        compare_runs.FinishedRun("run", "age", oof._replace(predictions=values))
        for values in (years, years + 0.25, np.where(years < 30, 70.0, years))
    )
    assert compare_runs.disagreement(first, same) == 0
    assert compare_runs.disagreement(first, other) == (years < 30).mean()
    assert first.macro_f1 == 1


def test_a_run_is_named_by_folder_name_or_suffix(saved: Path, tree: Path) -> None:
    better = f"{tree.name}_better"
    for name in (str(saved / better), f"{saved / better}/", better, "better"):
        assert compare_runs.main([str(saved), "--against", name]) == 0
    shutil.copytree(saved / better, saved / "kfold-ensemble-THANet_MK1_better")
    with pytest.raises(UserError, match="THANet_MK1_better.* end so; name one run's folder"):
        compare_runs.main([str(saved), "--against", "better"])


def test_time_is_known_of_runs_without_a_pause() -> None:
    times = {"started": "2021-04-07T12:00:00", "finished": "2021-04-07T13:01:01"}
    assert compare_runs.training_seconds(times) == 3661
    changes: tuple[dict[str, object], ...] = (
        {"resumed": [{}]},
        {"finished": 7},
        {"started": "noon"},
    )
    for change in changes:
        assert compare_runs.training_seconds(times | change) is None
    assert compare_runs.training_seconds({}) is None


def test_damaged_runs_are_listed_and_steer_no_terminal(
    saved: Path, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((saved / tree.name / "run.json").read_text())
    content["settings"] |= {
        "task": "\x1b[31m",
        "lr": "\x1b[31m",
        "cv": [1, 2],
        "optim_type": "=1+1",
    }
    (saved / tree.name / "run.json").write_text(json.dumps(content))
    (saved / f"{tree.name}_better" / "oof.csv").write_text("file\n")
    out = tmp_path / "table.csv"
    assert compare_runs.main([str(saved), "--csv", str(out)]) == 0
    assert "'=1+1" in pd.read_csv(out)["--optim-type"].tolist()  # no formula in a spreadsheet
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert f"{tree.name}: its task is unknown" in printed
    assert re.search(f"{tree.name}_better: .*oof.csv", printed)
    (saved / tree.name / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run.json: damaged"):
        compare_runs.main([str(saved)])


def test_bad_names_are_refused(saved: Path, tree: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "single").mkdir()
    shutil.copytree(saved / tree.name, tmp_path / "single" / tree.name)
    for words, message in (
        ([str(saved / "gone")], "no such folder"),
        ([str(tmp_path / "empty")], "train first"),
        ([str(saved), "--against", "x"], "--against x: no such run"),
        ([str(saved), "--against", "unfinished"], "not finished"),
        ([str(tmp_path / "single"), "--against", tree.name], "no other run"),
        ([str(saved), "--csv", str(saved / "gone" / "x.csv")], "--csv .*name another file"),
        ([str(saved), "--csv", str(saved)], "--csv .*name another file"),
        ([str(saved), "--cs", "x"], "unrecognized arguments"),
    ):
        with pytest.raises(UserError, match=message):
            compare_runs.main(words)


def test_it_does_without_torch() -> None:
    code = "import sys, tools.compare_runs; sys.exit('torch' in sys.modules)"
    root = Path(compare_runs.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0
