"""Command-line options from the fields of a frozen dataclass: parser, help, refusals, table."""

from __future__ import annotations

import argparse
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
MAX_NUMBER = 1e6  # more than any option needs, and few enough to count and to name files by


@dataclass(frozen=True)
class Range:
    """A number from `low` to `high`, both included unless `above` (then `low` is excluded)."""

    kind: type
    low: float
    high: float = MAX_NUMBER
    above: bool = False

    @property
    def metavar(self) -> str:
        return "N" if self.kind is int else "X"

    def __call__(self, text: str) -> float:
        shown = text[:SHOWN_CHARACTERS]
        try:
            value = self.kind(text)
        except ValueError:
            kind = "whole number" if self.kind is int else "number"
            raise argparse.ArgumentTypeError(f"{shown!r} is not a {kind}") from None
        if not self.low <= value <= self.high or (self.above and value == self.low):
            low = f"{'above' if self.above else 'at least'} {plain_number(self.low)}"
            bounds = f"{low} and at most {plain_number(self.high)}"
            raise argparse.ArgumentTypeError(f"{shown} is out of range: it must be {bounds}")
        return value


def plain_number(number: float) -> str:
    """0.5, 1,000,000."""
    return f"{int(number):,}" if number == int(number) else f"{number:g}"


@dataclass(frozen=True, eq=False)
class Choice:
    """One of `names` (a registry or a tuple), in any case. An alias stands for its name: one of
    `aliases`, or the `alias` of a registry's entry.
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
        known = {name.casefold(): name for name in self.names}
        known |= {alias.casefold(): name for alias, name in self.aliases.items()}
        for name, entry in self.registry.items() if isinstance(self.registry, Mapping) else ():
            if alias := getattr(entry, "alias", ""):
                known[alias.casefold()] = name
        if text.casefold() not in known:
            names = ", ".join(self.names)
            raise argparse.ArgumentTypeError(f"{text[:SHOWN_CHARACTERS]!r} is not one of {names}")
        return known[text.casefold()]


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
    **argparse_arguments: Any,
) -> Any:
    """A dataclass field that is a command-line option; one with the default False is a switch.

    kind: text -> value, raises ArgumentTypeError. shown: the default's wording in the help.
    argparse_arguments: further arguments of add_argument (metavar, nargs, const, action).
    """
    arguments = {"type": kind, **argparse_arguments}
    metadata = {
        "group": group,
        "help": help,
        "default": shown or ("none" if default is None else "off" if default is False else default),
        "arguments": {"action": "store_true"} if default is False else arguments,
    }
    return dataclasses.field(default=default, metadata=metadata)


S = TypeVar("S", bound="Settings")
P = TypeVar("P", bound="Settings")


@dataclass(frozen=True)
class Settings:
    """Base of a command's settings; the fields of its subclasses are made by `option`."""

    groups: ClassVar[tuple[str, ...]] = ()  # of options, in the order of --help
    removed: ClassVar[Mapping[str, str]] = {}  # {option of an earlier version: why it was removed}
    presets: ClassVar[Mapping[str, Mapping[str, Preset]]] = {}  # {field: {its value: preset}}
    retry_remedy: ClassVar[str] = "start it again"  # once a failure's cause is mended
    version: ClassVar[str] = ""

    @classmethod
    def parse(cls: type[S], argv: Sequence[str] | None, prog: str, description: str) -> S:
        """Settings from a command line (None: this process's own). Underscores in option names are
        read as hyphens.

        Raises UserError for an unknown, shortened or removed option, or a value out of range.
        """
        errors.retry_remedy = cls.retry_remedy
        words = [with_hyphens(word) for word in (sys.argv[1:] if argv is None else argv)]
        for name in (word.partition("=")[0] for word in words):
            if name in cls.removed:
                raise UserError(f"{name}: was removed, because {cls.removed[name]}; leave it out")
        os.environ.setdefault("COLUMNS", "120")
        parser = build_parser(cls, prog, description)
        known, unknown = parser.parse_known_args(words)
        if unknown:
            meant = suggest_option(cls, unknown)
            raise UserError(f"unrecognized arguments: {' '.join(unknown)}{meant} (see --help)")
        for name, presets in cls.presets.items():
            if getattr(known, name) is not None:
                parser.set_defaults(**presets[getattr(known, name)].options)
                known = parser.parse_args(words)
        values = {n: tuple(v) if isinstance(v, list) else v for n, v in vars(known).items()}
        for name, value in values.items():
            if value == "" or (isinstance(value, tuple) and "" in value):
                raise UserError(f"{flag(name)}: is empty; give it a value, or leave it out")
        return cls(**values)

    def part(self, group: type[P]) -> P:
        """The options of one of the classes that these settings are made of."""
        return group(**{f.name: getattr(self, f.name) for f in dataclasses.fields(group)})


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see --help)")


def sorted_fields(settings: type[Settings]) -> list[dataclasses.Field[Any]]:
    """Fields in the order of --help: by group."""
    return sorted(
        dataclasses.fields(settings), key=lambda f: settings.groups.index(f.metadata["group"])
    )


def argparse_arguments(field: dataclasses.Field[Any]) -> dict[str, Any]:
    """Arguments of add_argument for a field. Names registered since it was declared are choices."""
    arguments = dict(field.metadata["arguments"])
    if hasattr(arguments.get("type"), "metavar"):
        arguments.setdefault("metavar", arguments["type"].metavar)
    return arguments


def build_parser(settings: type[Settings], prog: str, description: str) -> argparse.ArgumentParser:
    """The parser of a settings class: --version, and an option for each field, in groups."""
    parser = _Parser(prog=prog, description=description, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"{prog} {settings.version}")
    groups = {name: parser.add_argument_group(name) for name in settings.groups}
    for field in sorted_fields(settings):
        text = f"{field.metadata['help']} (default: {field.metadata['default']})"
        groups[field.metadata["group"]].add_argument(
            flag(field.name),
            default=field.default,
            help=text.replace("%", "%%"),
            **argparse_arguments(field),
        )
    return parser


def suggest_option(settings: type[Settings], unknown: Sequence[str]) -> str:
    """`; did you mean --epochs?` for the first unknown option that begins or resembles one of the
    settings' options; else nothing.
    """
    options = [flag(field.name) for field in dataclasses.fields(settings)]
    for name in (word.partition("=")[0] for word in unknown if word.startswith("--")):
        meant = [option for option in options if option.startswith(name)]
        meant = meant or difflib.get_close_matches(name[:SHOWN_CHARACTERS], options, 1)
        if meant:
            return f"; did you mean {' or '.join(meant[:3])}?"
    return ""


def with_hyphens(word: str) -> str:
    """`--model_type=a_b` -> `--model-type=a_b`."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def options_table(settings: type[Settings]) -> str:
    """The options as a Markdown table."""
    rows = ["| option | values | default | meaning |", "|---|---|---|---|"]
    for field in sorted_fields(settings):
        arguments = argparse_arguments(field)
        values = arguments.get("metavar", "").strip("{}").replace(",", ", ")
        several = " ..." if arguments.get("nargs") == "+" else ""
        meaning, default = field.metadata["help"], field.metadata["default"]
        rows.append(f"| `{flag(field.name)}` | {values}{several} | {default} | {meaning} |")
    return "\n".join(rows)
