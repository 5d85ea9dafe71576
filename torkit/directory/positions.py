"""Which flags a relay needs for which position in a path. path-spec, "Path selection and constraints"."""

from enum import StrEnum

# Specification constants.

# guard-spec, "The guards listed in the current consensus": a guard must also be one that we can fetch
# directories from, and stay up.
GUARD_FLAGS = frozenset({"Fast", "Guard", "Running", "Stable", "V2Dir", "Valid"})


class Position(StrEnum):
    """A place in a path. The value is its letter in the names of the bandwidth weights."""

    GUARD = "g"
    MIDDLE = "m"
    EXIT = "e"


def is_possible_guard(flags: frozenset[str]) -> bool:
    """Returns whether a relay with these flags may be sampled as a guard: GUARDS of guard-spec."""
    return flags >= GUARD_FLAGS and "MiddleOnly" not in flags


def flags_refusal(
    flags: frozenset[str],
    position: Position,
    *,
    needs_stable: bool = False,
    is_relaxed: bool = False,
    is_named: bool = False,
) -> str | None:
    """Returns why a relay with these flags does not fit a position; None if it does.

    `is_relaxed` forgoes Fast and Stable; so does `is_named`, and the flags of a guard besides. An exit needs
    no Exit flag: its policy says whether it lets anything out.
    """
    if not {"Running", "Valid"} <= flags:
        return "not Running and Valid"
    if position is not Position.MIDDLE and "MiddleOnly" in flags:
        return "MiddleOnly"
    if not (is_relaxed or is_named):
        if "Fast" not in flags:
            return "not Fast"
        if needs_stable and "Stable" not in flags:
            return "not Stable"
    if position is Position.GUARD and not is_named and not is_possible_guard(flags):
        return "not a Guard"
    if position is Position.EXIT and "BadExit" in flags:
        return "BadExit"
    return None
