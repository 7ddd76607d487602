"""Command-line options from the fields of a frozen dataclass: parser, help, refusals."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn, TypeVar

from runtime import errors
from runtime.errors import UserError

SHOWN_CHARACTERS = 40  # of a wrong value, in a message
MAX_NUMBER = 10**6  # more than any option needs, and few enough to count and to name files by


@dataclass(frozen=True)
class Range:
    """A number from `low` (excluded if `above`) to `high`."""

    kind: type
    low: int
    high: int = MAX_NUMBER
    above: bool = False

    @property
    def metavar(self) -> str:
        return "N" if self.kind is int else "X"

    def __call__(self, text: str) -> float:
        with contextlib.suppress(ValueError):
            value: float = self.kind(text)
            if self.low <= value <= self.high and not (self.above and value == self.low):
                return value
        bounds = f"{'above' if self.above else 'at least'} {self.low:,} and at most {self.high:,}"
        whole = " (a whole number)" if self.kind is int else ""
        problem = f"{text[:SHOWN_CHARACTERS]} is out of range: it must be {bounds}{whole}"
        raise argparse.ArgumentTypeError(problem)


@dataclass(frozen=True, eq=False)
class Choice:
    """One of the names in `registry`, in any case, or of `more`. A name's alias stands for it: one
    of `aliases` {alias: name}, or the `alias` of the registry's entry.
    """

    registry: Collection[str]
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    more: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """All names, including those registered after the option was declared."""
        return [*self.registry, *self.more]

    @property
    def metavar(self) -> str:
        return "{" + ",".join(self.names) + "}"

    def __call__(self, text: str) -> str:
        known = {name: name for name in self.names} | dict(self.aliases)
        if isinstance(self.registry, Mapping):
            known |= {getattr(entry, "alias", ""): name for name, entry in self.registry.items()}
        for name in filter(None, known):
            if name.casefold() == text.casefold():
                return known[name]
        names = ", ".join(self.names)
        raise argparse.ArgumentTypeError(f"{text[:SHOWN_CHARACTERS]!r} is not one of {names}")


@dataclass(frozen=True)
class Preset:
    """Options under one name, {field: value}; explicit options override it."""

    options: Mapping[str, Any]
    help: str = ""

    def __str__(self) -> str:
        return " ".join(f"{flag(name)} {value}" for name, value in self.options.items())


def flag(name: str) -> str:
    """batch_size -> --batch-size."""
    return "--" + name.replace("_", "-")


def option(
    group: str,
    help: str,
    default: Any = None,
    kind: Callable[[str], Any] = str,
    shown: str = "",
    **arguments: Any,
) -> Any:
    """A dataclass field that is a command-line option; one with the default False is a switch.

    kind: text -> value, raises ArgumentTypeError. shown: the default's wording in the help.
    arguments: further ones of add_argument (metavar, nargs, const, action).
    """
    arguments = {"action": "store_true"} if default is False else {"type": kind, **arguments}
    shown = shown or ("none" if default is None else "off" if default is False else str(default))
    metadata = {"group": group, "help": help, "default": shown, "arguments": arguments}
    return dataclasses.field(default=default, metadata=metadata)


S = TypeVar("S", bound="Settings")
P = TypeVar("P", bound="Settings")


@dataclass(frozen=True)
class Settings:
    """Base of a command's settings; the fields of its subclasses are made by `option`."""

    groups: ClassVar[tuple[str, ...]] = ()  # of options, in the order of --help
    removed: ClassVar[Mapping[str, str]] = {}  # {option of an earlier version: why it was removed}
    spellings: ClassVar[Mapping[str, Sequence[str]]] = {}  # {option: what it stands for}
    presets: ClassVar[Mapping[str, Mapping[str, Preset]]] = {}  # {field: {its value: preset}}
    version: ClassVar[str] = ""

    @classmethod
    def parse(cls: type[S], argv: Sequence[str] | None, prog: str, description: str) -> S:
        """Settings from a command line (None: this process's own), underscores read as hyphens.

        Raises UserError for an unknown, shortened or removed option, or a value out of range.
        """
        errors.retry_remedy = "start it again"  # of an earlier command in this process
        words: list[str] = []
        for word in sys.argv[1:] if argv is None else argv:
            name, equals, value = word.partition("=")
            name = name.replace("_", "-") if name.startswith("--") else name
            if name in cls.removed:
                raise UserError(f"{name}: was removed, because {cls.removed[name]}; leave it out")
            words += cls.spellings.get(word, [name + equals + value])
        os.environ.setdefault("COLUMNS", "120")
        parser = build_parser(cls, prog, description)
        known, unknown = parser.parse_known_args(words)
        if unknown:
            suggestion = suggest_option(cls, unknown)
            raise UserError(f"unrecognized arguments: {' '.join(unknown)}{suggestion} (see --help)")
        for name, presets in cls.presets.items():
            if getattr(known, name) is not None:
                parser.set_defaults(**presets[getattr(known, name)].options)
                known = parser.parse_args(words)
        values = {n: tuple(v) if isinstance(v, list) else v for n, v in vars(known).items()}
        for name, given in values.items():
            if given == "" or (isinstance(given, tuple) and "" in given):
                raise UserError(f"{flag(name)}: is empty; give it a value, or leave it out")
        return cls(**values)

    def part(self, group: type[P]) -> P:
        """The options of one of the classes that these settings are made of."""
        return group(**{f.name: getattr(self, f.name) for f in dataclasses.fields(group)})


class Parser(argparse.ArgumentParser):
    """A parser whose errors are UserErrors, of one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see --help)")


def argparse_arguments(field: dataclasses.Field[Any]) -> dict[str, Any]:
    """Arguments of add_argument for a field; choices include what was registered late."""
    arguments: dict[str, Any] = field.metadata["arguments"]
    metavar = getattr(arguments.get("type"), "metavar", None)
    return {"metavar": metavar, **arguments} if metavar else arguments


def build_parser(settings: type[Settings], prog: str, description: str) -> argparse.ArgumentParser:
    """The parser of a settings class: --version, and an option for each field, in groups."""
    parser = Parser(prog=prog, description=description, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"{prog} {settings.version}")
    groups = {name: parser.add_argument_group(name) for name in settings.groups}
    for field in dataclasses.fields(settings):
        text = f"{field.metadata['help']} (default: {field.metadata['default']})"
        groups[field.metadata["group"]].add_argument(
            flag(field.name),
            default=field.default,
            help=text.replace("%", "%%"),
            **argparse_arguments(field),
        )
    return parser


def suggest_option(settings: type[Settings], unknown: Sequence[str]) -> str:
    """`; did you mean --epochs?` for the first unknown option that is like a known one."""
    options = [flag(field.name) for field in dataclasses.fields(settings)]
    for name in (word.partition("=")[0] for word in unknown if word.startswith("--")):
        similar = [option for option in options if option.startswith(name)]
        similar = similar or difflib.get_close_matches(name[:SHOWN_CHARACTERS], options, 1)
        if similar:
            return f"; did you mean {' or '.join(similar[:3])}?"
    return ""
