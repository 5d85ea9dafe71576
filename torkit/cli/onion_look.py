"""`torkit onion check` and `descriptor`: a service, looked at as a client would."""

import base64
import json
import sys
from ipaddress import IPv4Address
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torkit.cli.options import Options
from torkit.cli.progress import erase
from torkit.cli.running import open_client, run
from torkit.cli.table import labelled, terminal_width
from torkit.cli.voice import printable
from torkit.errors import StorageError, TorkitError

if TYPE_CHECKING:
    from torkit.hs.client_auth import ClientKey
    from torkit.hs.descriptor import Descriptor, IntroductionPoint
    from torkit.net.onion.look import Answer, Look, Met

Address = Annotated[str, typer.Argument(metavar="ADDRESS", help="56 characters and .onion.")]
Key = Annotated[
    Path | None, typer.Option("--key", metavar="FILE", help="A client's key, as keygen writes it.")
]


def check(
    context: typer.Context,
    name: Address,
    key: Key = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines on a terminal, too.")] = False,
) -> None:
    """Ask each directory for a descriptor; meet the service once."""
    options: Options = context.obj
    client_key = None if key is None else read_key(key)
    report = Report(for_people=sys.stdout.isatty() and not as_json, room=terminal_width(sys.stdout))

    async def command() -> None:
        async with open_client(options) as tor:
            look = tor.look_at_onion(name, client_key)
            await tor.wait_ready()
            erase()
            await look_at(look, report)

    run(command, options)


async def look_at(look: "Look", report: "Report") -> None:
    """Tell `report` of everything. Raises what made the meeting fail."""
    answers = await look.ask_directories(report.note_answer)
    found = [answer.descriptor for answer in answers if answer.descriptor is not None]
    if found:
        report.note_descriptor(max(found, key=lambda one: one.revision))
    try:
        meeting = await look.meet()
    except TorkitError as error:
        report.note_failure(error)
        raise
    report.note_meeting(meeting)


class Report:
    """Tells what was seen: JSON lines, or lines for people, of at most `room` characters."""

    def __init__(self, for_people: bool, room: float = inf) -> None:
        self._for_people = for_people
        self._room = room

    def note_answer(self, answer: "Answer") -> None:
        """What one directory has."""
        relay, descriptor = answer.relay, answer.descriptor
        if self._for_people:
            said = str(answer.failure) if descriptor is None else f"revision {descriptor.revision}"
            self._say(
                "directory",
                f"{relay.nickname:<19}  replica {answer.replica}  {answer.seconds:5.2f} s  {said}",
            )
            return
        row: dict[str, object] = {
            "replica": answer.replica,
            "nickname": relay.nickname,
            "fingerprint": relay.identity.hex().upper(),
            "seconds": round(answer.seconds, 6),
        }
        if descriptor is None:
            row["error"] = str(answer.failure)
        else:
            row["revision"] = descriptor.revision
        self._print("directory", row)

    def note_descriptor(self, descriptor: "Descriptor") -> None:
        """The newest."""
        if not self._for_people:
            self._print("descriptor", to_json(descriptor))
            return
        work = descriptor.proof_of_work
        asked = "no" if work is None else f"effort {work.effort}" if work.effort else "for nothing yet"
        self._say("descriptor", f"revision {descriptor.revision}, valid for {descriptor.lifetime} minutes")
        self._say("asks for", f"{asked} proof of work")
        for point in descriptor.points:
            self._say("point", _place_of(point))

    def note_meeting(self, meeting: "Met") -> None:
        """The service has come."""
        if self._for_people:
            worked = f", {meeting.worked:.2f} s of them for a proof of work" if meeting.worked else ""
            self._say("meeting", f"joined in {meeting.seconds:.2f} s{worked}")
        else:
            row = {"seconds": round(meeting.seconds, 6), "worked": round(meeting.worked, 6)}
            self._print("meeting", row)

    def note_failure(self, error: TorkitError) -> None:
        """The service was not met; for people, the command's last line says so."""
        if not self._for_people:
            self._print("meeting", {"error": str(error)})

    def _say(self, kind: str, text: str) -> None:
        print(labelled(f"{kind:<10}  ", printable(text), self._room), flush=True)

    def _print(self, kind: str, row: dict[str, Any]) -> None:
        print(json.dumps({"kind": kind, **row}), flush=True)


def _place_of(point: "IntroductionPoint") -> str:
    """The relay of a point: its fingerprint and IPv4 address, as far as the service names them."""
    from torkit.proto.messages import LinkSpecifierType

    named = dict(reversed(point.link_specifiers))
    identity = named.get(LinkSpecifierType.LEGACY_ID, b"").hex().upper()
    raw = named.get(LinkSpecifierType.IPV4, b"")
    where = f"{IPv4Address(raw[:4])}:{int.from_bytes(raw[4:], 'big')}" if len(raw) == 6 else "no IPv4 address"
    return f"{identity or 'no fingerprint'}  {where}"


def descriptor(
    context: typer.Context,
    name: Address,
    key: Key = None,
) -> None:
    """Fetch a service's descriptor, check it whole, and print JSON."""
    options: Options = context.obj
    client_key = None if key is None else read_key(key)

    async def command() -> None:
        async with open_client(options) as tor:
            await tor.wait_ready()
            found = await tor.onion_descriptor(name, client_key)
            erase()
            print(json.dumps(to_json(found)))

    run(command, options)


def read_key(file: Path) -> "ClientKey":
    """The client's key in a file. Raises StorageError and UsageError."""
    from torkit.hs.client_auth import MAX_LINE_LEN, decode_client_key

    try:
        with file.open() as text:
            return decode_client_key(text.read(MAX_LINE_LEN + 1))
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"{file}: {getattr(error, 'strerror', 'no text')}") from error


def to_json(found: "Descriptor") -> dict[str, Any]:
    """What a descriptor says; keys in base64 as the descriptor has them."""
    work = found.proof_of_work
    return {
        "revision": found.revision,
        "lifetime": 60 * found.lifetime,
        "signing_key": _base64(found.signing_key),
        "single_onion": found.is_single_onion,
        "sendme_inc": found.sendme_inc,
        "proof_of_work": work
        and {"effort": work.effort, "expires": work.expires, "seed": _base64(work.seed)},
        "introduction_points": [_point_to_json(point) for point in found.points],
    }


def _point_to_json(point: "IntroductionPoint") -> dict[str, Any]:
    return {
        "link_specifiers": [{"type": kind, "value": value.hex()} for kind, value in point.link_specifiers],
        "onion_key": _base64(point.onion_key),
        "auth_key": _base64(point.auth_key),
        "enc_key": _base64(point.enc_key),
    }


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
