"""Options: names, cases, ranges, refusals; `--help` without torch."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

import config
import registries
import submit_ensemble
import submit_singular
import train
from labels import TASKS
from runtime.errors import UserError
from runtime.options import build_parser, flag

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = {
    "train.py": config.TrainSettings,
    "submit_singular.py": config.SingularSettings,
    "submit_ensemble.py": config.EnsembleSettings,
}


def training(*words: str) -> config.TrainSettings:
    return config.TrainSettings.parse(list(words), "train.py", "").completed()


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_free_of_torch_and_shows_choices_and_defaults(script: str) -> None:
    code = (
        f"import sys, runpy\nsys.argv = [{script!r}, '--help']\n"
        f"try:\n    runpy.run_path({script!r}, run_name='__main__')\nexcept SystemExit as end:\n"
        "    assert end.code in (0, None), end.code\n"
        "assert not {'torch', 'pandas', 'numpy', 'torchvision'} & set(sys.modules), 'heavy "
        "imports'"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  --")]
    fields = [field.name for field in dataclasses.fields(SCRIPTS[script])]
    assert sorted(lines) == sorted(["--version", *map(flag, fields)])
    assert done.stdout.count("(default:") == len(fields)
    assert "recipe" not in fields or lines[:2] == ["--version", "--recipe"]
    assert all(group in done.stdout for group in ("\ndata:\n", "\nmodel:\n", "\nmachine:\n"))
    assert "{" + ",".join(TASKS) + "}" in done.stdout


@pytest.mark.parametrize(("script", "settings"), SCRIPTS.items())
def test_the_version_is_printed(
    script: str, settings: type[config.MachineSettings], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        settings.parse(["--version"], script, "")
    assert (end.value.code, capsys.readouterr().out) == (0, f"{script} {config.VERSION}\n")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'version = { attr = "config.VERSION" }' in project


def test_choices_of_the_backbone_are_listed_by_family() -> None:
    text = " ".join(build_parser(config.TrainSettings, "train.py", "").format_help().split())
    families = [text.index(f"{name}") for name in ("efficientnet-lite0; resnet18", "; timm:NAME")]
    assert families == sorted(families)


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--batch", "3"], "--batch"),
        (["--tsak", "main"], "--tsak"),
        (["--task", "hair"], "'hair' is not one of main, mask"),
        (["--batch-size", "0"], "--batch-size"),
        (["--threads", "x"], "--threads"),
        (
            ["--prior-shift", "em"],
            "--prior-shift: was removed, because what it changed in macro F1 lay between -0.085 "
            "and +0.09",
        ),
        (
            ["--decision=macro-f1"],
            "--decision: was removed, because the rule for macro F1 gained +0.003 out of fold",
        ),
        (
            ["--weights"],
            "--weights: was removed, because no gain of fitted weights over the validation F1",
        ),
    ],
)
def test_bad_arguments_end_with_code_2_and_one_line(
    script: str, words: list[str], told: str
) -> None:
    done = subprocess.run(
        [sys.executable, script, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"{script}: error: ")
    assert told in done.stderr


def test_underscores_and_any_case_are_accepted() -> None:
    settings = training(
        "--model_type=vanillaRESNET", "--TASK".lower(), "AGE", "--optim_type", "AdamP"
    )
    assert (settings.model_type, settings.task, settings.optim_type) == (
        "VanillaResNet",
        "age",
        "adamp",
    )
    assert training("--run-name", "a_b").run_name == "a_b"
    assert training("--pretrained", "NONE").pretrained == "none"
    assert training("--pretrained", "ImageNet").pretrained == "imagenet"
    assert registries.backbone_name("TIMM:ResNet10t") == "timm:ResNet10t"


@pytest.mark.parametrize("name", config.REMOVED_OPTIONS)
@pytest.mark.parametrize("settings", SCRIPTS.values())
def test_a_removed_option_is_refused_however_it_is_spelled(
    settings: type[config.MachineSettings], name: str
) -> None:
    assert name not in [f"--{field.replace('_', '-')}" for field in settings.__dataclass_fields__]
    for spelled in (name, f"--{name[2:].replace('-', '_')}"):
        for words in (
            [spelled],
            [spelled, "em"],
            [f"{spelled}=em"],
            ["--task", "mask", spelled, "em"],
        ):
            with pytest.raises(
                UserError, match=rf"^{name}: was removed, because .*; leave it out$"
            ):
                settings.parse(words, "", "")


def test_defaults_are_the_contracts() -> None:
    s = training()
    assert (s.task, s.model_type, s.transform_type, s.epochs, s.cv, s.batch_size) == (
        "main",
        "VanillaEfficientNet",
        "random",
        30,
        1,
        32,
    )
    assert (s.optim_type, s.loss_type, s.lr_scheduler, s.seed, s.save_path) == (
        "adam",
        "labelsmoothingloss",
        "cosine",
        42,
        "./saved_models",
    )
    assert (s.backbone, s.image_size, s.save_top, s.split_seed) == ("efficientnet-b3", 224, 3, 42)
    assert training("--task", "age").loss_type == "smoothl1loss"
    assert training("--model-type", "VanillaResNet").backbone == "resnet50"


@pytest.mark.parametrize(
    ("words", "rate"),
    [
        ([], 0.001),
        (["--optim-type", "adamp"], 0.001),
        (["--optim-type", "sgd"], 0.005),
        (["--optim-type", "momentum"], 0.005),
        (["--pretrained", "none"], 0.005),
        (["--pretrained", "none", "--load-state-dict", "x.pth"], 0.001),
        (["--lr", "0.02"], 0.02),
    ],
)
def test_the_default_learning_rate(words: list[str], rate: float) -> None:
    asked = config.TrainSettings.parse(words, "train.py", "")
    assert asked.completed().lr == rate
    # said where it is not the usual one, and was not asked for
    assert ("learning rate 0.001" in asked.explain_lr()) == (rate == 0.001)
    assert rate == 0.001 or not asked.explain_lr()


def test_only_pretrained_weights_are_said_to_be_wrecked(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = dataclasses.replace(registries.OPTIMIZERS["sgd"], lr_scratch=0.1)
    monkeypatch.setitem(registries.OPTIMIZERS, "sgd", entry)
    words = ["--optim-type", "sgd", "--pretrained", "none"]
    line = config.TrainSettings.parse(words, "train.py", "").explain_lr()
    assert line == "learning rate 0.1 (the default of sgd from scratch)"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["--task", "age", "--loss-type", "focalloss"],
            "--loss-type focalloss.*mseloss, smoothl1loss",
        ),
        (["--loss-type", "mseloss"], "--loss-type mseloss.*labelsmoothingloss"),
        (["--backbone", "resnet50"], "--backbone resnet50.*efficientnet-b0"),
        (["--backbone", "vgg"], "--backbone vgg: unknown"),
        (["--task", "mask", "--age-filter", "58"], "--age-filter"),
        (["--task", "age", "--age-filter", "58"], "--age-filter"),
        (["--age-filter", "61"], "--age-filter"),
        (["--epochs", "0"], "--epochs"),
        (["--lr", "0"], "--lr"),
        *[
            ([name, value], name)
            for name in (
                "--lr",
                "--weight-decay",
                "--backbone-lr-scale",
                "--clip-grad",
                "--warmup-epochs",
            )
            for value in ("nan", "inf", "1e300")
        ],
        *[
            ([name, "9" * digits], name)
            for digits in (20, 5000)
            for name in (
                "--epochs",
                "--save-top",
                "--seed",
                "--batch-size",
                "--threads",
                "--workers",
                "--cv",
                "--freeze",
                "--folds",
            )
        ],
        *[
            ([name, ""], f"{name}: is empty")
            for name in (
                "--load-state-dict",
                "--valid-root",
                "--boxes",
                "--label-fixes",
                "--train-root",
                "--device",
                "--resume",
            )
        ],
        (["--cv", "0"], "--cv"),
        (["--batch-size", "1"], "--batch-size"),
        (["--warmup-epochs", "30"], "--warmup-epochs"),
        (["--lr-scheduler", "cosine:31"], "--lr-scheduler cosine:31: a cycle longer"),
        (["--folds", "0,5", "--cv", "5", "--run-name", "x"], "--folds 0,5"),
        (["--folds", "0", "--cv", "5"], "--folds 0.*--run-name"),
    ],
)
def test_what_does_not_go_together_is_refused(words: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        training(*words)


def test_tta_needs_a_transform_with_random_views() -> None:
    def ensemble(*words: str) -> config.EnsembleSettings:
        return config.EnsembleSettings.parse(list(words), "submit_ensemble.py", "").completed()

    assert ensemble().transform_type == "base"
    assert ensemble("--tta", "2").transform_type == "tta"
    assert ensemble("--transform-type").transform_type == "auto"
    assert ensemble("--method", "HARD").method == "hardvoting"
    assert ensemble().top_k == 3
    with pytest.raises(UserError, match="--transform-type tta"):
        ensemble("--tta", "2", "--transform-type", "base")


@pytest.mark.parametrize(
    "words",
    [
        ["--root", "x"],
        ["--transform-type", "tta"],
        ["--tta", "2"],
        ["--data-root", "x"],
        ["--boxes", "x.csv"],
        ["--skip-bad-images"],
        ["--backend", "openvino"],
    ],
)
def test_options_of_prediction_are_refused_where_stored_probabilities_vote(
    words: list[str],
) -> None:
    asked = config.EnsembleSettings.parse(["--from-probs", "x", *words], "submit_ensemble.py", "")
    with pytest.raises(UserError, match=f"^{words[0]}: --from-probs votes on stored prob"):
        asked.completed()


@pytest.mark.parametrize("name", config.PRESETS)
def test_a_recipe_stands_for_its_options_and_each_of_them_goes_before(name: str) -> None:
    recipe = config.PRESETS[name]
    plain, expanded = training("--recipe", name.upper()), training(*str(recipe).split())
    assert dataclasses.replace(plain, recipe=None) == expanded
    for field, value in recipe.options.items():
        default = config.TrainSettings.__dataclass_fields__[field].default
        # where the plain command line has no default of its own
        others = {"lr": "0.7", "loss_type": "focalloss"}
        other = others[field] if default is None else str(default)
        changed = training("--recipe", name, f"--{field.replace('_', '-')}", other)
        assert str(getattr(changed, field)) == other != str(value)
    shown = build_parser(config.TrainSettings, "train.py", "").format_help()
    assert "".join(str(recipe).split()) in "".join(shown.split())  # lines break within options


def test_seed_is_another_spelling_of_the_recipe_original() -> None:
    assert training("--recipe", "Seed") == training("--recipe", "original")
    assert training("--recipe", "seed").explain_preset().startswith("recipe original: --cv 5 ")


@pytest.mark.parametrize(
    "name", ["nonsense", "meta", "hpu", "privateuseone", "cuda:99999999999", "cpu:-1"]
)
def test_a_wrong_device_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"--device {name}: not usable here"):
        train.main(["--device", name, "--pretrained", "none"])


def test_empty_and_huge_values_of_a_submission_are_refused() -> None:
    for words in (
        ["--root", "a", ""],
        ["--tta", "9" * 5000],
        ["--top-k", "9" * 20],
        ["--from-probs="],
    ):
        with pytest.raises(UserError, match=words[0].rstrip("=")) as refusal:
            config.EnsembleSettings.parse(words, "submit_ensemble.py", "")
        assert len(str(refusal.value)) < 300


def test_missing_input_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--train-root"):
        train.main(["--pretrained", "none", "--backbone", "tiny"])
    with pytest.raises(UserError, match="saved_models.*answers main"):
        submit_singular.main([])
    with pytest.raises(UserError, match="saved_models.*--root"):
        submit_ensemble.main([])
    assert list(tmp_path.iterdir()) == []
