"""Options that several commands share, and the command class that shows options in named groups."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from onnxq.cli._guard import State

F = TypeVar("F", bound=Callable[..., Any])


class _Path(click.Path):
    """A path; an empty one, as an unset variable of a shell gives it, would mean the working folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("it is empty; name a file", param, ctx)
        return super().convert(value, param, ctx)


class _Data(click.types.StringParamType):
    """Text that says where samples are."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail(f"it is empty; pass {CALIBRATION_FORMS}", param, ctx)
        return value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Files and folders, which most samples are in."""
        return [CompletionItem(incomplete, type="file")]


class FiniteRange(click.FloatRange):
    """A number of a range that is neither NaN, which no bound refuses, nor infinite."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number; NaN and infinities are refused."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is no finite number", param, ctx)
        return float(number)

    def _describe_range(self) -> str:
        """For the help text, which says nothing of a range without bounds."""
        return super()._describe_range() if (self.min, self.max) != (None, None) else ""


FILE = _Path(path_type=Path)
DATA = _Data()

CALIBRATION_FORMS = (
    "an .npz file (arrays by input name, samples along axis 0, 'labels' optional), a .parquet or .csv table (columns "
    "by input name), a folder of .npz or .npy files, of images or of recordings (folders in it are classes), or "
    "module:callable, which returns an iterable of dicts (arrays by input name); for language models a .txt file, a "
    "line or a paragraph a sample"
)


CALIBRATION_SHORT = "an .npz, .csv, .parquet or .txt file, a folder of images, recordings or .npz, or module:callable"


class GroupedOption(click.Option):
    """An option that is listed under a heading of its own in the help text, with ``short`` for a text in --help."""

    def __init__(self, *args: Any, group: str = "Options", short: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group
        self.short = short


class GroupedCommand(click.Command):
    """A command whose help lists options under their headings, in the order in which they were declared.

    All have ``--help-all``, which lists all options. With ``common``, the names of parameters, ``--help`` lists these
    alone; without, it lists all too, and does not speak of ``--help-all``.
    """

    def __init__(self, *args: Any, common: Collection[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.in_short = {*common, "help", "help_all"} if common else set()
        self.params.append(_help_all(hidden=not common))

    def _is_short(self, ctx: click.Context) -> bool:
        return bool(self.in_short) and not ctx.meta.get(_ALL)

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what the command does; --help, where there is --help-all, the first paragraph of it."""
        whole, self.help = self.help, (self.help or "").split("\n\n")[0] if self._is_short(ctx) else self.help
        try:
            super().format_help_text(ctx, formatter)
        finally:
            self.help = whole

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples; --help, where there is --help-all, the first three of them."""
        whole = self.epilog
        if self._is_short(ctx) and self.epilog:
            self.epilog = "\n".join(self.epilog.splitlines()[:5])  # a mark of click and the heading come first
        try:
            super().format_epilog(ctx, formatter)
        finally:
            self.epilog = whole

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one definition list a group; ungrouped options come last."""
        short = self._is_short(ctx)
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if not isinstance(parameter, click.Option) or (short and parameter.name not in self.in_short):
                continue
            record = parameter.get_help_record(ctx)
            if record is not None:
                if short:
                    record = record[0], _in_short(record[1], getattr(parameter, "short", ""))
                groups.setdefault(getattr(parameter, "group", "Options"), []).append(record)
        last = groups.pop("Options", [])
        for title, records in [*groups.items(), ("Options", last)]:
            with formatter.section(title):
                formatter.write_dl(records)


_ALL = "onnxq.help_all"


def _in_short(text: str, short: str) -> str:
    """The first sentence of a help text, or what stands for it; and the default, where that is a few words."""
    sentence = re.split(r"\.(?= |$)|  \[default", text)[0]
    said = short or (re.split("[:;] ", sentence)[0] if len(sentence) > 100 else sentence) + "."
    return said + "".join(re.findall(r"  \[(?:default: [^\]]{1,24}|required)\]", text))


def _show_all(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        ctx.meta[_ALL] = True
        click.echo(ctx.get_help(), color=ctx.color)
        ctx.exit()


def _help_all(*, hidden: bool) -> GroupedOption:
    return GroupedOption(
        ["--help-all"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        hidden=hidden,
        callback=_show_all,
        help="Show every option, with its default, and exit.",
    )


def option(
    *declarations: str, help: str, group: str = "Options", default_text: str = "", **attributes: Any
) -> Callable[[F], F]:
    """Declare an option under a heading.

    Args:
        declarations: its names, as for ``click.option``.
        help: what it does, in sentences.
        group: the heading.
        default_text: what happens without the option, where that is not one value.
        attributes: the rest of what ``click.option`` takes.
    """
    text = f"{help}  [default: {default_text}]" if default_text else help
    return click.option(*declarations, cls=GroupedOption, group=group, help=text, **attributes)


def _remember_verbose(ctx: click.Context, parameter: click.Parameter, value: bool) -> bool:
    state(ctx).verbose |= value
    return value


def state(ctx: click.Context) -> State:
    """The state of the run, shared with the guard."""
    return ctx.ensure_object(State)


def output_options(function: F) -> F:
    """Add --json and -v/--verbose, which every command has."""
    function = option(
        "-v",
        "--verbose",
        is_flag=True,
        is_eager=True,
        callback=_remember_verbose,
        help="Show every name in full, and a traceback if the program itself fails.",
    )(function)
    return option("--json", "as_json", is_flag=True, help="Print one JSON object to standard output.")(function)


def threads_option(group: str, default_text: str = "the processors that are free") -> Callable[[F], F]:
    """Add --threads."""
    return option(
        "--threads",
        type=click.IntRange(min=1),
        metavar="N",
        group=group,
        default_text=default_text,
        help="Threads that onnxruntime may use for one inference.",
    )


def _pairs(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str] | None:
    found: dict[str, str] = {}
    for value in values:
        output, equals, name = value.partition("=")
        if not (output and equals and name):
            raise click.BadParameter(f"{value!r} is no pair; write OUT=IN, such as hn=h", ctx, parameter)
        if output in found:
            raise click.BadParameter(f"output {output!r} is named twice; it goes into one input", ctx, parameter)
        found[output] = name
    return found or None


def states_option(group: str) -> Callable[[F], F]:
    """Add --state."""
    return option(
        "--state",
        "states",
        multiple=True,
        metavar="OUT=IN",
        callback=_pairs,
        group=group,
        default_text="pairs found by name, such as hn and h, or by shape, for inputs that DATA lacks",
        help="Feed output OUT of the model back into input IN at the next sample. Repeatable.",
    )


def custom_ops_option(group: str) -> Callable[[F], F]:
    """Add --custom-ops."""
    return option(
        "--custom-ops",
        type=FILE,
        multiple=True,
        metavar="LIBRARY",
        group=group,
        help="Library of custom operators (.so, .dll) that onnxruntime needs to run the model. Repeatable.",
    )


def examples(*lines: str) -> str:
    """Format an epilog of examples that click leaves as it is."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
