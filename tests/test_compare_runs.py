"""tools/compare_runs: all runs in a table, paired differences, pairs that vote well together."""

from __future__ import annotations

import json
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
    table = pd.read_csv(out, dtype=str).set_index("run")
    assert set(table.columns) == {
        *("task", "macro F1", "95 %", "mask", "gender", "ageg", "time", "--lr")
    }
    oof = out_of_fold.read_oof(saved / tree.name, "main")
    assert oof is not None
    score = out_of_fold.score_rows("main", *oof).macro_f1
    assert table.loc[tree.name, "macro F1"] == f"{score:.4f}"
    assert float(table.loc[f"{tree.name}_better", "macro F1"]) > score
    assert table.loc[f"{tree.name}_better", "--lr"] == "0.123"
    assert table.loc[f"{tree.name}_unfinished", "macro F1"] == "-"
    printed = capsys.readouterr().out
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
    table = pd.read_csv(out, dtype=str).set_index("run")
    runs = [out_of_fold.read_oof(saved / f"{tree.name}{name}", "main") for name in ("", "_better")]
    scores = [out_of_fold.score_rows("main", *run).macro_f1 for run in runs if run is not None]
    row = table.loc[f"{tree.name}_better"]
    assert row[f"difference from {tree.name}"] == f"{scores[1] - scores[0]:+.4f}"
    low, high = (float(end) for end in row["95 %"].split(" to "))
    assert low <= scores[1] - scores[0] <= high
    decided = [ensemble.decide("main", run.predictions) for run in runs if run is not None]
    assert row["disagree"] == f"{(decided[0] != decided[1]).mean():.1%}"
    assert "other folds" in table.loc[other.name, "note"]
    assert "not finished" in table.loc[f"{tree.name}_unfinished", "note"]


def test_bad_names_are_refused(saved: Path, tmp_path: Path) -> None:
    for words, message in (
        ([str(saved / "gone")], "no such folder"),
        ([str(saved), "--against", "x"], "--against x: no such run"),
        ([str(saved), "--against", "unfinished"], "not finished"),
    ):
        with pytest.raises(UserError, match=message):
            compare_runs.main(words)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="train first"):
        compare_runs.main([str(tmp_path / "empty")])


def test_it_does_without_torch() -> None:
    code = "import sys, tools.compare_runs; sys.exit('torch' in sys.modules)"
    root = Path(compare_runs.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0
