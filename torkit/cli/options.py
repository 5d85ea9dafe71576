"""The options that several commands share, and what their values mean."""

import re
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from torkit.cli.voice import say
from torkit.errors import UsageError

if TYPE_CHECKING:
    from torkit.directory.directory import CountryOf
    from torkit.paths.constraints import Constraints, VanguardMode
    from torkit.proto.padding import Padding

# Implementation limit.
MAX_COUNTRIES = 20_000  # relays whose country is remembered from one consensus to the next


class Options(NamedTuple):
    """The global options, for every command."""

    network: Path | None
    data_dir: Path | None
    cgo: str
    verbosity: int
    allow_debugging: bool = False


# What the user may restrict in the paths of a command.
EntryNodes = Annotated[
    str | None,
    typer.Option(
        "--entry-nodes",
        metavar="NAMES",
        help="Begin at these only: fingerprints, nicknames, or {de} for a country.",
    ),
]
ExitNodes = Annotated[
    str | None, typer.Option("--exit-nodes", metavar="NAMES", help="Leave Tor only through these.")
]
ExcludeNodes = Annotated[
    str | None, typer.Option("--exclude-nodes", metavar="NAMES", help="Never use these.")
]

PaddingName = Annotated[
    str,
    typer.Option(
        "--padding",
        metavar="auto|reduced|off",
        help="How much link padding; auto is what C tor's clients do.",
    ),
]


VanguardsName = Annotated[
    str,
    typer.Option(
        "--vanguards",
        metavar="lite|full",
        help="How well the guard is hidden from onion services; lite is what C tor's clients do.",
    ),
]

ConfluxName = Annotated[
    str,
    typer.Option(
        "--conflux", metavar="auto|off", help="Whether streams go over two circuits at once, as C tor's do."
    ),
]


def command_app(**settings: Any) -> typer.Typer:
    """Returns a Typer app as all commands have it, without rich (a tenth of a second each run)."""
    return typer.Typer(
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        **settings,
    )


def parse_padding(text: str) -> "Padding":
    """Returns what `--padding` names. Says what less than by default costs. Raises UsageError."""
    from torkit.proto.padding import Padding

    try:
        padding = Padding(text)
    except ValueError:
        raise UsageError(f"--padding takes auto, reduced or off, not {text!r}") from None
    if padding is not Padding.AUTO:
        how_well = "to the second" if padding is Padding.OFF else "better"
        say(f"--padding {text}: who records your network's traffic can see {how_well} when you used Tor")
    return padding


def parse_vanguards(text: str) -> "VanguardMode":
    """Returns what `--vanguards` names. Says what more than by default costs. Raises UsageError."""
    from torkit.paths.constraints import VanguardMode

    try:
        mode = VanguardMode(text)
    except ValueError:
        raise UsageError(f"--vanguards takes lite or full, not {text!r}") from None
    if mode is VanguardMode.FULL:
        say("--vanguards full: relays can see that your circuits to onion services are longer than most")
    return mode


def restrictions(
    *, entry_nodes: str | None, exit_nodes: str | None, exclude_nodes: str | None, path: str | None
) -> "Constraints | None":
    """Returns the restrictions of every path, or None. Says what each costs. Raises UsageError."""
    options = [
        ("--entry-nodes", entry_nodes, "whoever uses guards that few others use can be recognized by them"),
        ("--exit-nodes", exit_nodes, "whoever always leaves by the same few relays can be recognized there"),
        ("--exclude-nodes", exclude_nodes, "paths that never use some relays can be told from other paths"),
    ]
    for option, names, cost in options:
        if names is not None:
            if path is not None:
                raise UsageError(f"--path names every relay, {option} has no use beside it")
            say(f"{option}: {cost}")
    entries, exits, exclude = (_relay_names(option, names) for option, names, _ in options)
    if not (entries or exits or exclude):
        return None
    from torkit.paths.constraints import Constraints

    return Constraints(entries=entries, exits=exits, exclude=exclude)


def _relay_names(option: str, text: str | None) -> frozenset[str]:
    """What `torkit.paths.choose.places_of` takes."""
    names = frozenset() if text is None else frozenset(name.strip() for name in text.split(","))
    for name in names:
        if not re.fullmatch(r"\$?[0-9A-Fa-f]{40}|[0-9A-Za-z]{1,19}|\{(?:[0-9A-Za-z]{2}|\?\?)\}", name):
            raise UsageError(
                f"{option}: {name!r} is neither a fingerprint nor a nickname nor a country like {{de}}"
            )
    return names


def country_lookup(restrictions: "Constraints | None", geoip: Path | None) -> "CountryOf | None":
    """What tells countries, if any are named, by this file or an installed one.

    Raises UsageError where there is no such file, or a country is unknown.
    """
    from torkit.paths.constraints import country_in

    if restrictions is None:
        return None
    names = restrictions.entries | restrictions.exits | restrictions.exclude
    named = sorted(country for name in names if (country := country_in(name)) is not None)
    if not named:
        return None
    from torkit.cli.countries import Countries

    countries = Countries(geoip)
    countries.require(named)
    return lru_cache(MAX_COUNTRIES)(countries.of)


def seconds(value: str | float) -> float:
    """Returns the value of an option that takes a time. Raises typer.BadParameter."""
    with suppress(ValueError):
        if (number := float(value)) >= 0:
            return number
    raise typer.BadParameter("expected a number of seconds from 0")


def parse_conflux(text: str) -> bool:
    """Returns what `--conflux` names. Raises UsageError."""
    if text not in ("auto", "off"):
        raise UsageError(f"--conflux takes auto or off, not {text!r}")
    return text == "auto"
