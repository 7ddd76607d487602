# ruff: noqa: E501
"""The reports' pages: numbers -> one HTML file that asks for nothing else, readable on a phone."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any
from unicodedata import category

import config
import photographs
from utils import Told, counted

THUMBNAIL = 96  # pixels of a small photograph's width
Numbers = dict[str, Any]
Rows = Sequence[tuple[str, object]]


@dataclass(frozen=True)
class Picture:
    """A value of an extra row that is shown as a small photograph with a note."""

    path: str
    note: str


# --- the page of a run


def training_page(numbers: Numbers, paths: Mapping[str, str], extra: Mapping[str, Rows]) -> str:
    """The page of a run. paths: {file: where its photograph is}."""
    parts = [training_head(numbers), costs(numbers)]
    parts += [extra_section(title, rows) for title, rows in extra.items()]
    parts += [
        curves(numbers),
        confusions(numbers),
        each_class(numbers),
        beside(ages(numbers), calibration(numbers)),
        wrong_people(numbers, paths),
        data(numbers),
        settings(numbers),
    ]
    return document(f"{numbers['name']}: report", parts)


def beside(*sections: str) -> str:
    """Sections in one row where there is room."""
    return f'<div class="pair">{"".join(sections)}</div>'


def training_head(numbers: Numbers) -> str:
    """The score, its interval, and what it means."""
    head, task, cv = numbers["headline"], numbers["task"], len(numbers["folds"])
    f1, right = head["macro_f1"], head["accuracy"]
    of = "the age groups' macro F1" if config.TASKS[task].regression else "macro F1"
    of = f"{'out-of-fold' if cv > 1 else 'held-out'} {of}"
    means = (
        f"On people it has never seen, one model of this run scores about {number(f1['value'])}: "
        "every photograph was answered "
        "by a model that never saw its person. "
        f"{counted(head['people'], 'person leaves', 'people leave')} this uncertain, with "
        f"95 % confidence from {span(f1)}; take differences well inside that range for chance. "
        "The vote of all folds usually "
        "does better."
    )
    if cv < 2:
        means = (
            f"Measured on the {counted(head['people'], 'held-out person', 'held-out people')} of "
            "a single split: a rough figure, "
            "and optimistic where they chose the epoch too. --cv 5 gives an honest score."
        )
    boxes: list[tuple[str, object]] = [(f"accuracy, {span(right)}", number(right["value"]))]
    if "rmse" in head:
        boxes += [
            ("years, root mean square error", number(head["rmse"], 2)),
            ("years, mean error", number(head["mae"], 2)),
        ]
    boxes += [
        (f"people, {counted(head['photographs'], 'photograph')}", head["people"]),
        ("folds" if cv > 1 else "fold", cv),
        ("from start to end", duration(numbers["time"]["seconds"])),
        ("images/s in training", number(numbers["time"]["images_per_second"], 1)),
    ]
    return (
        f'<section class="head"><h1>{text(numbers["name"])}</h1><p class="soft">Task '
        f"{text(task)}, {of}</p>"
        f'<div class="score">{number(f1["value"])} <small>95 % interval {span(f1)}</small></div>'
        f"{said(means)}{tiles(boxes)}</section>\n"
    )


def costs(numbers: Numbers) -> str:
    """What to work on: which part of the answer and which classes cost the most."""
    now = numbers["headline"]["macro_f1"]["value"]
    known = sorted(
        (row for row in numbers["classes"] if row["photographs"]), key=lambda row: row["f1"]
    )
    weak = "; ".join(
        f"{text(row['name'].replace('_', ' '))} ({number(row['f1'], 2)})" for row in known[:3]
    )
    worst = said(f"Weakest classes: {weak}." if len(known) > 3 else "")
    if "if_right" not in numbers:
        return section("Where the points are lost", worst)
    names = {"mask": "mask state", "gender": "gender", "ageg": "age group"}
    first = max(numbers["if_right"], key=numbers["if_right"].get)
    rows = [
        (
            names[part],
            number(would),
            f"{would - now:+.3f}",
            ranged(numbers["parts"][part]["headline"]["macro_f1"]),
            ranged(numbers["parts"][part]["headline"]["accuracy"]),
        )
        for part, would in numbers["if_right"].items()
    ]
    told = (
        f"The {names[first]} costs the most: were it always right, macro F1 would be "
        f"{number(numbers['if_right'][first])}."
    )
    head = ("part", "macro F1 if always right", "gain", "its own macro F1", "its own accuracy")
    return section("Where the points are lost", said(told), grid(head, rows), worst)


def extra_section(title: str, rows: Rows) -> str:
    """A caller's rows: values as a table, pictures below."""
    cards = [
        (v.path, f"<b>{text(n)}</b><br>{text(v.note)}") for n, v in rows if isinstance(v, Picture)
    ]
    return section(
        title, listed([(n, v) for n, v in rows if not isinstance(v, Picture)]), faces(cards)
    )


def curves(numbers: Numbers) -> str:
    """Learning curves of all folds, and what they say."""
    import charts

    folds = [fold for fold in numbers["folds"] if fold["history"]]
    if not folds:
        return ""
    loss = charts.drawn(
        charts.learning, "Loss by epoch and fold", folds, "valid_loss", "train_loss", "loss"
    )
    f1 = charts.drawn(
        charts.learning, "Macro F1 by epoch and fold", folds, "macro_f1", "", "validation macro F1"
    )
    note = said(
        '<span class="soft">Loss: solid on held-out people, dashed on the training people '
        "(augmented, so often "
        "higher).</span>"
    )
    return section("Learning curves", said(verdict(folds)), charted(f1, loss), note)


def verdict(folds: Sequence[Numbers]) -> str:
    """One sentence on the mean curve: still rising, past its best, or done."""
    lengths = {len(fold["history"]["macro_f1"]) for fold in folds}
    epochs = lengths.pop()
    if lengths or epochs < 3:  # folds of unlike lengths, or too short to tell
        return ""
    mean = [
        sum(values) / len(folds)
        for values in zip(*(fold["history"]["macro_f1"] for fold in folds), strict=True)
    ]
    losses = [
        sum(values) / len(folds)
        for values in zip(*(fold["history"]["valid_loss"] for fold in folds), strict=True)
    ]
    best, lowest = mean.index(max(mean)) + 1, losses.index(min(losses)) + 1
    where = f"The mean curve is best at epoch {best} of {epochs} ({number(mean[best - 1])})"
    if epochs - best <= max(1, epochs // 10):
        return f"{where}: nothing was lost by training this long, and more epochs may still help."
    if lowest < 0.7 * epochs:
        return (
            f"{where} and the loss on held-out people is lowest at epoch {lowest}: it overfits "
            "from there; "
            "more augmentation or fewer epochs may help."
        )
    return f"{where}: it has levelled off."


def confusions(numbers: Numbers) -> str:
    """The task's confusion matrix and those of its parts."""
    task = numbers["task"]
    whole = matrix(
        config.judged(task),
        numbers["confusion"],
        "Rows: true class; columns: answered; shaded by share of the row.",
    )
    captions = {"mask": "Mask", "gender": "Gender", "ageg": "Age group"}
    parts = [
        matrix(part, found["confusion"], captions[part])
        for part, found in numbers.get("parts", {}).items()
    ]
    return section(
        "What is taken for what",
        f'<div class="flow"><div>{whole}</div><div>{"".join(parts)}</div></div>',
    )


def each_class(numbers: Numbers) -> str:
    """F1 of each class with its interval where the truth is known, and how often each is answered."""
    import charts

    names, answered = (
        [name.replace("_", " ") for name in numbers["class_names"]],
        numbers["class_shares"],
    )
    others = {"true": numbers.get("true_shares"), "in training": numbers.get("training_shares")}
    known = {name: shares for name, shares in others.items() if shares is not None}
    classes, height = numbers.get("classes", []), 1.0 + 0.24 * len(names)
    drawn = (
        [
            charts.drawn(
                charts.class_scores, "F1 of each class with its interval", classes, height=height
            )
        ]
        if classes
        else []
    )
    drawn.append(
        charts.drawn(
            charts.shares,
            "Share of each class among the answers",
            names,
            answered,
            known,
            height=height,
        )
    )
    head = ("class", *(("F1", "95 % interval") if classes else ()), "answered", *known)
    rows = [
        (
            name,
            *((number(classes[place]["f1"]), span(classes[place])) if classes else ()),
            *(f"{100 * shares[place]:.1f} %" for shares in (answered, *known.values())),
        )
        for place, name in enumerate(names)
    ]
    expected = next(iter(known.values()), answered)
    rare = [
        text(name)
        for name, share, fair in zip(names, answered, expected, strict=True)
        if share < fair / 2
    ]
    told = said(
        f"Answered less than half as often as {next(iter(known), '')}: {'; '.join(rare)}."
        if rare
        else ""
    )
    return section(
        "Each class",
        told,
        charted(*drawn),
        f"<details><summary>Figures</summary>{grid(head, rows)}</details>",
    )


def ages(numbers: Numbers) -> str:
    """Errors by true age, and where the boundaries leak."""
    import charts

    if not numbers["ages"]:
        return ""
    leaks = []
    for row in numbers["boundaries"]:
        start, sides = row["age"], []
        if row["below"]:
            share = percent(row["below_called_older"] / row["below"])
            below = counted(row["below"], "photograph is", "photographs are")
            sides.append(
                f"at {start - 3} to {start - 1} years {share} of {below} called {start} and over"
            )
        if row["above"]:
            share = percent(row["above_called_younger"] / row["above"])
            sides.append(
                f"at {start} to {start + 2} years {share} of {row['above']} are called younger"
            )
        leaks.append(f"Around {start}: {'; '.join(sides)}.")
    chart = charts.drawn(
        charts.age_errors,
        "Share of photographs in the wrong age group by true age",
        numbers["ages"],
    )
    drawn = [chart]
    if "mean_answer" in numbers["ages"][0]:
        drawn.append(
            charts.drawn(charts.mean_answers, "Mean answer in years by true age", numbers["ages"])
        )
    return section("Errors by age", *map(said, leaks), charted(*drawn))


def calibration(numbers: Numbers) -> str:
    """Whether the confidence means what it says."""
    import charts

    found = numbers.get("calibration")
    if not found:
        return ""
    right = numbers["headline"]["accuracy"]["value"]
    off = found["confidence"] - right
    kind = (
        "about right"
        if abs(off) < 0.03
        else "too sure of itself"
        if off > 0
        else "too modest (label smoothing makes it so)"
    )
    told = (
        f"It is {percent(found['confidence'])} sure on average and right in {percent(right)}: "
        f"{kind}. "
        f"Expected calibration error {number(found['ece'])}."
    )
    return section(
        "Does its confidence mean anything?",
        said(told),
        charted(
            charts.drawn(charts.reliability, "Share of right answers by confidence", found["bins"])
        ),
    )


def wrong_people(numbers: Numbers, paths: Mapping[str, str]) -> str:
    """The people whom the model contradicts most."""
    cards = []
    for row in numbers["most_wrong"]:
        label, answer = (text(row[key].replace("_", " ")) for key in ("true", "answered"))
        note = (
            f'<b>{text(row["person"])}</b><br><span class="yes">label: {label}</span><br><span '
            f'class="no">answer: {answer}</span>'
        )
        cards.append(
            (paths.get(row["file"]), f"{note}<br>{row['wrong']} of {row['photographs']} wrong")
        )
    told = said(
        "Each with the photograph it is most wrong about. A wrong label looks like this too. "
        '<span class="soft">This '
        "page holds photographs of people of your data: mind whom you give it to.</span>"
    )
    return section("The most wrong people", told, faces(cards)) if cards else ""


def data(numbers: Numbers) -> str:
    """People and photographs per fold and class."""
    folds = numbers["folds"]
    scores = grid(
        ("fold", "people", "photographs", "macro F1", "accuracy", "best epoch"),
        [
            (
                f["fold"],
                f["people"],
                f["photographs"],
                ranged(f["macro_f1"]),
                ranged(f["accuracy"]),
                best_epoch(f),
            )
            for f in folds
        ],
    )
    head = ("photographs of class", "all", *(f"fold {fold['fold']}" for fold in folds))
    rows = [
        (
            row["name"].replace("_", " "),
            row["photographs"],
            *(fold["photographs_per_class"][place] for fold in folds),
        )
        for place, row in enumerate(numbers["classes"])
    ]
    return section(
        "Folds and data",
        f'<div class="flow"><div>{scores}</div><div>{grid(head, rows)}</div></div>',
    )


def best_epoch(fold: Numbers) -> str:
    """At which epoch a fold's own curve is best."""
    curve = fold["history"].get("macro_f1", [])
    return f"{curve.index(max(curve)) + 1} of {len(curve)}" if curve else "–"


def settings(numbers: Numbers) -> str:
    """How it was made, folded up."""
    run = numbers["run"]
    rows: list[tuple[str, object]] = [
        ("command", " ".join(map(str, run.get("command", [])))),
        ("started", run.get("started", "")),
    ]
    rows += [
        (f"--{name.replace('_', '-')}", value)
        for name, value in run.get("settings", {}).items()
        if name != "dry_run"
    ]
    rows += [
        (name, value)
        for group in ("chosen", "machine", "versions")
        for name, value in run.get(group, {}).items()
    ]
    return section(
        "How it was made",
        f"<details><summary>Settings, machine, versions</summary>{listed(rows)}</details>",
    )


# --- the page of a prediction


def prediction_page(numbers: Numbers) -> str:
    """The page of a prediction."""
    scored = "confusion" in numbers
    known = [costs(numbers), confusions(numbers)] if scored else []
    parts = [
        prediction_head(numbers),
        *known,
        each_class(numbers),
        methods(numbers),
        members(numbers),
        making(numbers),
    ]
    return document(f"{numbers['name']}: report", parts)


def prediction_head(numbers: Numbers) -> str:
    """The score where the truth is known, else how far the members agree."""
    count, several = len(numbers["members"]), len(numbers["members"]) > 1
    agreed = sum(row["equal_to_vote"] for row in numbers["members"]) / count
    boxes: list[tuple[str, object]] = [
        ("photographs", numbers["photographs"]),
        ("members" if several else "member", count),
        (
            "views of each photograph" if numbers["views"] > 1 else "view of each photograph",
            numbers["views"],
        ),
    ]
    if "confidence" in numbers:
        boxes.append(("sure on average", percent(numbers["confidence"])))
    if several:
        boxes.append(("of a member's answers are the vote's", percent(agreed)))
    first = numbers["methods"][0]["name"]
    if "headline" in numbers:
        f1, right = numbers["headline"]["macro_f1"], numbers["headline"]["accuracy"]
        boxes.insert(0, (f"accuracy, {span(right)}", number(right["value"])))
        alone = [row["macro_f1"] for row in numbers["members"]]
        gain = f1["value"] - sum(alone) / count
        means = "Against the true answers (the interval takes photographs for independent)."
        means += f" {vote_gain(gain, sum(alone) / count)}" if several else ""
        score = (
            f'<div class="score">{number(f1["value"])} <small>macro F1 of {text(first)}, 95 % '
            f"interval {span(f1)}</small>"
            f"</div>{said(means)}"
        )
    else:
        weights = [row["validation_macro_f1"] for row in numbers["members"]]
        score = (
            f'<div class="score">{number(sum(weights) / count)} <small>mean validation macro F1 '
            "of its members</small></div>"
            + said(
                "The true answers are not known here. Each member's score is that of its best "
                "epoch in the task it was "
                "trained for, so a little optimistic; the out-of-fold score in the training's "
                "report is the one to "
                "trust."
            )
        )
    return (
        f'<section class="head"><h1>{text(numbers["name"])}</h1><p class="soft">Task '
        f"{text(numbers['task'])}</p>"
        f"{score}{tiles(boxes)}</section>\n"
    )


def making(numbers: Numbers) -> str:
    """What was said on the way, and the settings, folded up."""
    made = numbers["made"]
    rows = [
        (f"--{name.replace('_', '-')}", value)
        for name, value in made.get("settings", {}).items()
        if value is not None
    ]
    lines = "".join(said(text(line)) for line in made.get("notes", []))
    folded = f"<details><summary>Settings</summary>{listed(rows)}</details>" if rows else ""
    return section("How it was made", lines, folded) if lines or folded else ""


def vote_gain(gain: float, mean: float) -> str:
    """What the vote is worth beside its members."""
    return (
        f"Its members alone score {number(mean)} on average: the vote "
        f"{'gains' if gain >= 0 else 'loses'} {abs(gain):.3f}."
    )


def short_member(name: str) -> str:
    """A member's name without what all of a tree share: its tree where several vote, fold and
    epoch.
    """
    found = re.match(r"(?P<tree>.*?)/?fold\d+/Fold(?P<fold>\d+)_.*?ep\((?P<epoch>\d+)\)", name)
    if found is None:
        return name.partition("bs(")[0]
    return (
        f"{found['tree']}{', ' if found['tree'] else ''}fold {int(found['fold'])}, epoch "
        f"{found['epoch']}"
    )


def methods(numbers: Numbers) -> str:
    """The ways of voting beside each other."""
    scored = "confusion" in numbers
    rows = [
        (
            row["name"],
            percent(row["equal_to_first"]),
            *((number(row["macro_f1"]), number(row["accuracy"])) if scored else ()),
        )
        for row in numbers["methods"]
    ]
    head = (
        "vote",
        f"answers equal to {numbers['methods'][0]['name']}",
        *(("macro F1", "accuracy") if scored else ()),
    )
    return section("Ways of voting", grid(head, rows)) if len(rows) > 1 or scored else ""


def members(numbers: Numbers) -> str:
    """Each member, and how often each two of them answer alike."""
    rows, scored = numbers["members"], "confusion" in numbers
    head = (
        "member",
        "validation macro F1",
        "equal to the vote",
        *(("macro F1 here", "accuracy here") if scored else ()),
    )
    table = grid(
        head,
        [
            (
                f"{place + 1}. {short_member(row['name'])}",
                number(row["validation_macro_f1"]),
                percent(row["equal_to_vote"]),
                *((number(row["macro_f1"]), number(row["accuracy"])) if scored else ()),
            )
            for place, row in enumerate(rows)
        ],
    )
    if len(rows) < 2:
        return section("Members", table)
    pairs = [share for place, own in enumerate(numbers["agreement"]) for share in own[:place]]
    lowest = min(pairs)
    top = "".join(f'<th scope="col">{place + 1}</th>' for place in range(len(rows)))
    body = "".join(
        f'<tr><th scope="row">{place + 1}</th>'
        + "".join(
            f"<td{shade((share - lowest) / max(1 - lowest, 1e-9))}>{100 * share:.0f}</td>"
            for share in own
        )
        + "</tr>"
        for place, own in enumerate(numbers["agreement"])
    )
    told = (
        f"Two members answer alike in {percent(sum(pairs) / len(pairs))} of the photographs on "
        "average, in "
        f"{percent(lowest)} at least. Members that err differently gain the most by voting."
    )
    agreement = square("Equal answers in % of the photographs", f"<tr><th></th>{top}</tr>", body)
    return section("Members", said(told), table, agreement)


# --- pieces of a page


def text(value: object) -> str:
    """Any value, safe within a page: escaped, and without characters that steer instead of being
    seen.
    """
    if isinstance(value, float):
        value = f"{value:.4g}"
    shown = "none" if value is None else str(value)
    return escape(
        "".join("\N{REPLACEMENT CHARACTER}" if category(c).startswith("C") else c for c in shown)
    )


def number(value: float | None, digits: int = 3) -> str:
    """A number, or a dash for none."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def percent(value: float) -> str:
    """0.314 -> 31 %."""
    return f"{100 * value:.0f}\N{NO-BREAK SPACE}%"


def ranged(part: Mapping[str, float]) -> str:
    """A value with its interval."""
    return f"{number(part['value'])} ({span(part)})"


def span(part: Mapping[str, float]) -> str:
    """An interval as 0.41 to 0.48."""
    return f"{number(part['low'])} to {number(part['high'])}"


def thumbnail(path: str | None) -> str:
    """A photograph as a small <img>, or an empty frame where it cannot be read any more."""
    try:
        photo = photographs.read_photo(path or "")
    except Told:
        return '<span class="lost">no photograph</span>'
    photo.thumbnail((THUMBNAIL, 2 * THUMBNAIL))
    buffer = io.BytesIO()
    photo.save(buffer, "jpeg", quality=80)
    return (
        f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
    )


STYLE = """
:root{color-scheme:light;--ink:#1f2933;--soft:#52606d;--line:#dfe4ea;--blue:#2f6db5}
*{box-sizing:border-box}
body{margin:0;background:#f3f5f8;color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1080px;margin:0 auto;padding:16px}
section{background:#fff;border:1px solid var(--line);border-radius:12px;padding:18px 20px;margin:0 0 16px}
h1{font-size:17px;margin:0 0 2px;font-weight:600;overflow-wrap:anywhere}h2{font-size:19px;margin:0 0 6px}
p{margin:6px 0;max-width:46em}.soft{color:var(--soft);font-size:14px}
.head{border-top:5px solid var(--blue)}
.score{font-size:56px;line-height:1.1;font-weight:700;letter-spacing:-1px}
.score small{font-size:17px;font-weight:400;letter-spacing:0;color:var(--soft);white-space:nowrap}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(128px,1fr));gap:10px;margin:14px 0 2px}
.tiles div{background:#f3f5f8;border-radius:8px;padding:8px 12px}.tiles b{display:block;font-size:19px}
.tiles span{color:var(--soft);font-size:13px}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,310px),1fr));gap:8px 28px}main>.pair{gap:0 16px}
figure{margin:8px 0}svg{display:block;width:100%;max-width:560px;height:auto}svg *{stroke-linejoin:round}
.scroll{overflow-x:auto;-webkit-overflow-scrolling:touch;margin:8px 0}
table{border-collapse:collapse;font-size:14px;font-variant-numeric:tabular-nums}
td,th{padding:4px 9px;border-bottom:1px solid var(--line);text-align:right;font-weight:400;white-space:nowrap}
th{color:var(--soft);white-space:normal;vertical-align:bottom}td:first-child,th:first-child{text-align:left;padding-left:0}
.rows td{text-align:left;white-space:normal;overflow-wrap:anywhere;vertical-align:top}
.rows td:first-child{color:var(--soft);min-width:8em}
.matrix td,.matrix th{padding:0 1px;height:28px;text-align:center;vertical-align:middle;font-size:12px}
.matrix td{min-width:34px;border:solid #e9edf1;border-width:1px 0 0 1px}.matrix td:first-child{padding:0 1px}
.matrix th{border:0;white-space:nowrap}.matrix thead th{font-size:11px;padding:0 3px}.matrix tbody th{padding:0 4px}
.matrix tbody th:last-of-type{text-align:right}.matrix th span{writing-mode:vertical-rl;transform:rotate(180deg)}
.matrix .r3>*{border-top:1px solid #8a97a5}.matrix .c3{border-left:1px solid #8a97a5}
.matrix .r6>*{border-top:2px solid #52606d}.matrix .c6{border-left:2px solid #52606d}
.flow{display:flex;flex-wrap:wrap;gap:4px 36px}.flow>div{max-width:100%}
.faces{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:12px;margin:10px 0}
.faces div{font-size:13px;line-height:1.35;overflow-wrap:anywhere}
.faces img,.lost{display:block;width:96px;min-height:96px;border-radius:8px;margin-bottom:4px;background:#e4e7eb}
.lost{color:var(--soft);padding:8px}.no{color:#b3362c}.yes{color:#1c7a5b}
details summary{cursor:pointer;font-weight:600}
@media(max-width:520px){main{padding:8px}section{padding:14px 12px}.score{font-size:46px}
.score small{display:block;white-space:normal}.matrix td{min-width:29px}.matrix td,.matrix th{font-size:10.5px}}
"""


def document(title: str, sections: Sequence[str]) -> str:
    """The whole page. It runs no script and asks for nothing: its policy forbids both."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n<meta '
        'http-equiv="Content-Security-Policy" '
        f'content="{policy}">\n<meta name="viewport" content="width=device-width, '
        'initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}</style></head>\n<body><main>\n{''.join(sections)}</main></body></html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A card with a title; nothing where it has no content."""
    inside = "".join(parts)
    return f"<section><h2>{text(title)}</h2>\n{inside}</section>\n" if inside else ""


def said(sentence: str) -> str:
    """A paragraph of a sentence that is safe already."""
    return f"<p>{sentence}</p>\n" if sentence else ""


def grid(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table that scrolls where it is too wide."""
    top = "".join(f'<th scope="col">{text(cell)}</th>' for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>\n'


def listed(rows: Rows) -> str:
    """Names and values."""
    body = "".join(f"<tr><td>{text(name)}</td><td>{text(value)}</td></tr>" for name, value in rows)
    return (
        f'<div class="scroll"><table class="rows"><tbody>{body}</tbody></table></div>\n'
        if rows
        else ""
    )


def tiles(rows: Rows) -> str:
    """Figures in small boxes."""
    return f'<div class="tiles">{"".join(f"<div><b>{text(v)}</b><span>{text(n)}</span></div>" for n, v in rows)}</div>\n'


def charted(*charts: str) -> str:
    """Charts side by side, or below each other where there is no room."""
    return f'<div class="pair">{"".join(f"<figure>{chart}</figure>" for chart in charts)}</div>\n'


def shade(share: float) -> str:
    """Background and ink of a cell by its share."""
    ink = "#fff" if share > 0.55 else "#1f2933"
    return f' style="background:rgba(47,109,181,{share:.2f});color:{ink}"' if share >= 0.005 else ""


def short_ages() -> list[str]:
    first, second = config.GROUP_STARTS
    return [f"<{first}", f"{first}–{second - 1}", f"{second}+"]


def matrix(task: str, counts: Sequence[Sequence[int]], caption: str) -> str:
    """A confusion matrix: counts, coloured by the share of their row; the 18 classes grouped by
    mask, gender and age.
    """
    masks = [mask.replace("_", " ") for mask in config.MASKS]
    names = {"main": short_ages() * 6, "ageg": short_ages(), "mask": masks}.get(
        task, list(config.TASKS[task].classes)
    )
    top = "".join(f'<th scope="col">{text(name)}</th>' for name in names)
    if task == "main":
        wide = "".join(f'<th colspan="6" scope="colgroup">{text(mask)}</th>' for mask in masks)
        half = "".join(
            f'<th colspan="3" scope="colgroup">{text(gender)}</th>' for gender in config.GENDERS * 3
        )
        top = "".join(f'<tr><th colspan="3"></th>{row}</tr>' for row in (wide, half, top))
    else:
        top = f"<tr><th></th>{top}</tr>"
    body = []
    for row, own in enumerate(counts):
        total = max(sum(own), 1)
        cells = "".join(
            f"<td{edge('c', task, column)}{shade(count / total)}>{count or ''}</td>"
            for column, count in enumerate(own)
        )
        head = ""
        if task == "main" and not row % 6:
            head += f'<th rowspan="6" scope="rowgroup"><span>{text(masks[row // 6])}</span></th>'
        if task == "main" and not row % 3:
            head += (
                '<th rowspan="3" '
                f'scope="rowgroup"><span>{text(config.GENDERS[row // 3 % 2])}</span></th>'
            )
        body.append(
            f'<tr{edge("r", task, row)}>{head}<th scope="row">{text(names[row])}</th>{cells}</tr>'
        )
    return square(caption, top, "".join(body))


def edge(kind: str, task: str, place: int) -> str:
    """The class of a row or column that begins a mask state (or the matrix), or a gender: a line
    goes before it.
    """
    if not place or (task == "main" and not place % 6):
        return f' class="{kind}6"'
    return f' class="{kind}3"' if task == "main" and not place % 3 else ""


def square(caption: str, head: str, body: str) -> str:
    """A table of small square cells below its caption."""
    table = (
        '<table class="matrix" '
        f'aria-label="{text(caption)}"><thead>{head}</thead><tbody>{body}</tbody></table>'
    )
    return f'<p class="soft">{text(caption)}</p><div class="scroll">{table}</div>\n'


def faces(cards: Sequence[tuple[str | None, str]]) -> str:
    """Small photographs with a note (safe already) each."""
    return (
        f'<div class="faces">{"".join(f"<div>{thumbnail(path)}{note}</div>" for path, note in cards)}</div>\n'
        if cards
        else ""
    )


def duration(seconds: float | None) -> str:
    """4000 -> 1 h 07 min."""
    if seconds is None:
        return "–"
    minutes = round(seconds / 60)
    return (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{minutes} min"
        if minutes < 60
        else f"{minutes // 60} h {minutes % 60:02d} min"
    )
