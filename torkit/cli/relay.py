"""`torkit relay`: everything that is known of one relay."""

import json
import sys
from base64 import b64encode
from math import inf
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torkit.cli.countries import Countries, GeoIP, GeoIP6
from torkit.cli.documents import At, Certs, Flavor, From, Source, read_directory, status_fields
from torkit.cli.options import command_app
from torkit.cli.paths import find_relay
from torkit.cli.table import labelled, terminal_width
from torkit.cli.voice import say
from torkit.targets import format_address

if TYPE_CHECKING:
    from torkit.directory.directory import Directory, Relay

app = command_app()


@app.command()
def relay(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="FINGERPRINT", help="Or the nickname of only one relay.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line.")] = False,
    where: From = None,
    flavor: Flavor = None,
    certs: Certs = None,
    at: At = None,
    geoip: GeoIP = None,
    geoip6: GeoIP6 = None,
) -> None:
    """Print everything that is known of one relay."""
    directory = read_directory(context.obj, Source(where, flavor, certs, at))
    index = find_relay(directory, name)
    if directory.relay_at(index) is None:
        say("its microdescriptor is not at hand: what only that tells, like keys and family, is not known")
    fields = relay_fields(directory, index, Countries(geoip, geoip6))
    print(json.dumps(fields) if as_json else to_text(fields))


def relay_fields(directory: "Directory", index: int, countries: Countries) -> dict[str, Any]:
    """Returns the values for JSON.

    Unknown ones are None; keys and digests are base64, as in the documents.
    """
    from torkit.directory.netdoc import encode_time
    from torkit.directory.positions import Position

    consensus = directory.consensus
    status = consensus.relays[index]
    relay = directory.relay_at(index)
    ipv6 = relay.ipv6 if relay else status.ipv6
    policy = relay.policy if relay else status.policy
    return {
        **status_fields(status),
        "ipv6": format_address(*ipv6) if ipv6 else None,
        "country": countries.of(status.address),
        "ipv6_country": countries.of(ipv6[0]) if ipv6 else None,
        "probability": {
            position.name.lower(): directory.probability(position, index) for position in Position
        },
        "digest": _base64(status.digest),
        "ed25519": _base64(relay.ed25519_identity) if relay else None,
        "ntor_onion_key": _base64(relay.ntor_onion_key) if relay else None,
        "exit_policy": str(policy) if policy else None,
        "exit_policy6": str(relay.policy6) if relay else None,
        "family_ids": sorted(relay.family_ids) if relay else None,
        "family": family_fields(directory, relay) if relay else None,
        "consensus": {
            "flavor": consensus.flavor,
            "valid_after": encode_time(consensus.valid_after).replace(" ", "T") + "Z",
        },
    }


def family_fields(directory: "Directory", relay: "Relay") -> list[dict[str, Any]]:
    """Returns the relays of its family, and those that it names.

    `is_mutual` is None where the other's microdescriptor is not at hand, or the consensus lacks it.
    """
    from torkit.paths.choose import family_of

    found = {
        other.identity: {"fingerprint": other.fingerprint, "nickname": other.nickname, "is_mutual": True}
        for other in family_of(directory, relay)
    }
    elsewhere = []
    for name in sorted(relay.family):
        indexes = directory.indexes_of(name)
        for status in (directory.consensus.relays[index] for index in indexes):
            is_mutual = None if directory.relay(status.identity) is None else False
            fields = {"fingerprint": status.identity.hex().upper(), "nickname": status.nickname}
            found.setdefault(status.identity, {**fields, "is_mutual": is_mutual})
        if not indexes:
            is_fingerprint = name.startswith("$")
            elsewhere.append(
                {
                    "fingerprint": name[1:] if is_fingerprint else None,
                    "nickname": None if is_fingerprint else name,
                    "is_mutual": None,
                }
            )
    found.pop(relay.identity, None)  # many name themselves
    return [*found.values(), *elsewhere]


def to_text(fields: dict[str, Any]) -> str:
    """Returns one line for each field, and for each relay of the family; where a terminal is narrow, more."""
    room = terminal_width(sys.stdout) if sys.stdout.isatty() else inf
    lines = []
    for name, value in fields.items():
        if name == "family":
            lines += [labelled(f"{name:<16}", _member(one), room) for one in value or ()]
        else:
            lines.append(labelled(f"{name:<16}", _field(name, value), room))
    return "\n".join(lines)


def _field(name: str, value: Any) -> str:
    if name == "probability":
        return "  ".join(f"{position} {100 * share:.4f} %" for position, share in value.items())
    if isinstance(value, list):
        value = " ".join(value)
    if isinstance(value, dict):
        value = ", ".join(map(str, value.values()))
    return "-" if value in (None, "") else str(value)


def _member(fields: dict[str, Any]) -> str:
    fingerprint = fields["fingerprint"] and f"${fields['fingerprint']}"
    name = "~".join(filter(None, (fingerprint, fields["nickname"])))
    return (
        name
        + {True: "", False: "  does not name it back", None: "  not known whether mutual"}[
            fields["is_mutual"]
        ]
    )


def _base64(data: bytes | None) -> str | None:
    return None if data is None else b64encode(data).decode().rstrip("=")
