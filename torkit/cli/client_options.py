"""The options that say through what a command's streams go, defined and read in one place."""

from collections.abc import Callable
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, get_origin

from torkit.cli.countries import GeoIP
from torkit.cli.effort import MaxEffort, parse_effort
from torkit.cli.memory import MaxMemory, parse_size
from torkit.cli.options import (
    EntryNodes,
    ExcludeNodes,
    ExitNodes,
    PaddingName,
    VanguardsName,
    parse_conflux,
    parse_padding,
    parse_vanguards,
    restrictions,
)

if TYPE_CHECKING:
    from torkit.paths.constraints import Constraints, VanguardMode
    from torkit.proto.padding import Padding

Command = Callable[..., None]


class ClientSettings(NamedTuple):
    """What is asked of a client of our own; None is the default.

    `geoip` is the file of the countries that `restrictions` name; else an installed one is.
    """

    restrictions: "Constraints | None" = None
    geoip: Path | None = None
    padding: "Padding | None" = None
    max_memory: int | None = None
    pow_max_effort: int | None = None
    conflux: bool = True
    vanguards: "VanguardMode | None" = None


DEFAULT = ClientSettings()


def with_options(argument: str, read: Callable[..., Any]) -> Callable[[Command], Command]:
    """Give a command the options that `read` takes; what `read` returns becomes `argument` of the command.

    Options are those parameters of `read` that are Annotated. The others are options of the command's own,
    which `read` is told if the command has them.
    """
    wanted = signature(read).parameters
    added = [one for one in wanted.values() if get_origin(one.annotation) is Annotated]

    def decorate(command: Command) -> Command:
        own = [one for name, one in signature(command).parameters.items() if name != argument]

        @wraps(command)
        def run(**values: Any) -> None:
            told = {name: values[name] for name in wanted if name in values}
            for option in added:
                if option not in own:
                    del values[option.name]
            command(**values, **{argument: read(**told)})

        parameters = [*own, *(one for one in added if one not in own)]
        parameters = [one.replace(kind=Parameter.KEYWORD_ONLY) for one in parameters]
        run.__signature__ = signature(command).replace(parameters=parameters)  # type: ignore[attr-defined]  # for Typer
        run.__annotations__ = {one.name: one.annotation for one in parameters}
        return run

    return decorate


def client_settings(
    path: str | None = None,
    conflux: str = "auto",
    entry_nodes: EntryNodes = None,
    exit_nodes: ExitNodes = None,
    exclude_nodes: ExcludeNodes = None,
    geoip: GeoIP = None,
    padding: PaddingName = "auto",
    max_memory: MaxMemory = None,
    pow_max_effort: MaxEffort = None,
    vanguards: VanguardsName = "lite",
) -> ClientSettings:
    """Says what each option costs. Raises UsageError."""
    wanted = restrictions(
        entry_nodes=entry_nodes, exit_nodes=exit_nodes, exclude_nodes=exclude_nodes, path=path
    )
    return ClientSettings(
        wanted,
        geoip,
        parse_padding(padding),
        parse_size(max_memory),
        parse_effort(pow_max_effort),
        parse_conflux(conflux),
        parse_vanguards(vanguards),
    )
