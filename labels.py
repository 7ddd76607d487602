"""What a photograph is labelled with: classes, tasks, age groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

MASKS = ("wear", "incorrect", "not_wear")
GENDERS = ("male", "female")
AGE_GROUPS = ("under 30", "30 to 59", "60 and over")
GROUP_STARTS = (30, 60)  # the age in years at which the next age group starts
PHOTO_SIZE = (384, 512)  # width, height in pixels of the competition's photographs


def age_group(years: float) -> int:
    """0 under 30, 1 from 30 to 59, 2 from 60, by the age rounded to whole years."""
    whole = math.floor(years + 0.5)
    return sum(whole >= start for start in GROUP_STARTS)


@dataclass(frozen=True)
class Task:
    """What to predict: `label(mask, gender, years)` is a photograph's class, or a value.

    from_main: this task's class for each of the 18, so that a `main` model predicts it by summing.
    judged_as: a regression's F1 is that of this task, whose `label(0, 0, value)` is taken.
    """

    label: Callable[[int, int, float], float]
    classes: tuple[str, ...]  # their names; empty for a regression
    from_main: tuple[int, ...] = ()
    judged_as: str = ""

    @property
    def regression(self) -> bool:
        return not self.classes

    @property
    def outputs(self) -> int:
        """Width of a head for this task."""
        return max(len(self.classes), 1)


TASKS: dict[str, Task] = {
    "main": Task(
        lambda m, g, y: 6 * m + 3 * g + age_group(y),
        tuple(f"{m}, {g}, {a}" for m in MASKS for g in GENDERS for a in AGE_GROUPS),
        tuple(range(18)),
    ),
    "mask": Task(lambda m, g, y: m, MASKS, tuple(c // 6 for c in range(18))),
    "ageg": Task(lambda m, g, y: age_group(y), AGE_GROUPS, tuple(c % 3 for c in range(18))),
    "age": Task(lambda m, g, y: y, (), judged_as="ageg"),
    "gender": Task(lambda m, g, y: g, GENDERS, tuple(c // 3 % 2 for c in range(18))),
}


@dataclass(frozen=True)
class InnerHead:
    """A head that is no task itself: tasks sum its classes, a regression is their mean value."""

    label: Callable[[int, int, float], float]  # as a task's
    outputs: int
    loss: str  # target(shares of its classes in training), whatever --loss-type says
    tasks: Mapping[str, tuple[int, ...]]  # {task: its class, or value, for each of this head's}
    regression = False


YEARS = 100  # ages 0, 1 ... 99
INNER_HEADS: dict[str, InnerHead] = {
    "year": InnerHead(
        lambda m, g, y: min(math.floor(y + 0.5), YEARS - 1),
        YEARS,
        "loss:YearsLoss",
        {"ageg": tuple(map(age_group, range(YEARS))), "age": tuple(range(YEARS))},
    )
}


def head_spec(name: str) -> Task | InnerHead:
    """What a model's head is trained for: a task, or what tasks are predicted from."""
    return INNER_HEADS[name] if name in INNER_HEADS else TASKS[name]


def depends_on_age_filter(head: str) -> bool:
    """Whether --age-filter can change the head's labels: those of 59 and 60 years differ."""
    spec = head_spec(head)
    return not spec.regression and spec.label(0, 0, 59) != spec.label(0, 0, 60)


def tasks_predicted_by(head: str) -> tuple[str, ...]:
    """The tasks that a head predicts by itself."""
    return tuple(INNER_HEADS[head].tasks) if head in INNER_HEADS else (head,)


PARTS = ("mask", "gender", "ageg")  # what the 18 classes are made of


def can_predict(heads: tuple[str, ...], task: str) -> bool:
    """Whether a model with these heads predicts a task, also from `main` or `main` from parts."""
    known = {name for head in heads for name in tasks_predicted_by(head)}
    knows_main = "main" in known or set(PARTS) <= known
    return task in known or (knows_main and bool(TASKS[task].from_main))


def scoring_task(task: str) -> str:
    """The task whose classes the macro F1 of `task` counts: itself, or a regression's groups."""
    return TASKS[task].judged_as or task
