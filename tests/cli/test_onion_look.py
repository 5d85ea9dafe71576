"""`torkit onion check`: what is printed of a service, for people and for programs, and what is refused."""

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from network.torkit_process import Result
from onion_network import onion_relays
from served import fresh_relays, relay_of
from served_shell import shell_on

from torkit.cli.failures import NOT_RESOLVED, WRONG_USAGE
from torkit.cli.onion_look import Report, look_at
from torkit.errors import NotServed, OnionServiceError, OnionStep, TorkitError
from torkit.hs.address import encode_address, parse_address
from torkit.hs.client_auth import ClientKey, encode_client_key
from torkit.hs.descriptor import Descriptor, IntroductionPoint, ProofOfWork
from torkit.hs.keys import SecretKey
from torkit.net.onion.look import Answer, Met
from torkit.proto.messages import LinkSpecifierType

RELAY = relay_of(fresh_relays(1)[0])
POINT = IntroductionPoint(
    (
        (LinkSpecifierType.IPV4, bytes([10, 0, 0, 1, 0x13, 0x88])),
        (LinkSpecifierType.LEGACY_ID, b"\xab" * 20),
    ),
    *(bytes(32), bytes(32), bytes(32)),
)


def descriptor(revision: int, effort: int | None = None) -> Descriptor:
    return Descriptor(
        *(bytes(32), bytes(32)),
        revision=revision,
        lifetime=180,
        signing_key=bytes(32),
        is_single_onion=False,
        sendme_inc=None,
        proof_of_work=None if effort is None else ProofOfWork(bytes(32), effort, 0),
        points=(POINT,),
    )


class FakeLook:
    """A service of which three directories tell, and which comes or does not."""

    def __init__(self, end: Met | TorkitError, effort: int | None = None) -> None:
        self._end = end
        self._answers = [
            Answer(1, RELAY, 0.25, descriptor(7, effort)),
            Answer(1, RELAY, 0.5, failure=NotServed("the directory answered 404\x1b[2J")),
            Answer(2, RELAY, 0.75, descriptor(6)),
        ]

    async def ask_directories(self, note: Any) -> list[Answer]:
        for answer in self._answers:
            note(answer)
        return self._answers

    async def meet(self) -> Met:
        if isinstance(self._end, TorkitError):
            raise self._end
        return self._end


async def printed(look: Any, capsys: pytest.CaptureFixture[str], *, for_people: bool) -> list[str]:
    await look_at(look, Report(for_people))
    return capsys.readouterr().out.splitlines()


async def test_lines_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    lines = await printed(FakeLook(Met(1.5, 0.5)), capsys, for_people=False)
    first, second, third, found, meeting = [json.loads(line) for line in lines]
    fingerprint = RELAY.identity.hex().upper()
    assert first == {
        "kind": "directory",
        "replica": 1,
        "nickname": "fake",
        "fingerprint": fingerprint,
        "seconds": 0.25,
        "revision": 7,
    }
    assert "revision" not in second
    assert "404" in second["error"]
    assert (third["replica"], third["revision"]) == (2, 6)
    assert (found["kind"], found["revision"]) == ("descriptor", 7)  # the newest
    assert found["proof_of_work"] is None
    assert len(found["introduction_points"]) == 1
    assert meeting == {"kind": "meeting", "seconds": 1.5, "worked": 0.5}


@pytest.mark.parametrize(
    ("effort", "asked"), [(None, "no proof of work"), (0, "for nothing yet"), (9, "effort 9")]
)
async def test_lines_for_people(effort: int | None, asked: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = await printed(FakeLook(Met(1.5, 0.5), effort), capsys, for_people=True)
    assert lines[0] == "directory   fake                 replica 1   0.25 s  revision 7"
    assert lines[1].endswith("the directory answered 404?[2J")  # nothing of theirs moves the cursor
    assert lines[3] == "descriptor  revision 7, valid for 180 minutes"
    assert asked in lines[4]
    assert lines[5] == f"point       {'AB' * 20}  10.0.0.1:5000"
    assert lines[6] == "meeting     joined in 1.50 s, 0.50 s of them for a proof of work"


async def test_lines_fit_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    for room in (40, 80):
        await look_at(FakeLook(Met(1.5, 0.5)), Report(for_people=True, room=room))  # type: ignore[arg-type]  # a fake
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= room
        assert " ".join(" ".join(line[12:] for line in lines).split()).count("replica 1") == 2


async def test_a_service_that_does_not_come_is_told_and_is_the_commands_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = OnionServiceError.at(OnionStep.INTRODUCTION)
    with pytest.raises(OnionServiceError):
        await printed(FakeLook(error), capsys, for_people=False)
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last == {"kind": "meeting", "error": str(error)}


async def test_the_command_against_relays_that_have_no_such_service(tmp_path: Path) -> None:
    address, other = (encode_address(SecretKey.from_seed(seed * 32).public) for seed in (b"a", b"b"))
    (tmp_path / "key").write_text(encode_client_key(ClientKey(parse_address(other), os.urandom(32))))
    async with onion_relays() as network:
        shell = shell_on(network, tmp_path)

        async def run(arguments: str) -> Result:
            line = partial(shell.run, f"torkit onion check {arguments}", timeout=130)
            return await trio.to_thread.run_sync(line)

        missing = await run(address)
        assert missing.returncode == NOT_RESOLVED
        rows = [json.loads(line) for line in missing.stdout.splitlines()]
        assert [row["kind"] for row in rows] == ["directory"] * 6 + ["meeting"]
        assert {row["replica"] for row in rows[:-1]} == {1, 2}
        assert all("404" in row["error"] for row in rows[:-1])
        assert b"no directory has the onion service's descriptor" in missing.stderr
        for arguments, why in (
            ("web.test", b"onion"),
            (f"--key {tmp_path}/key {address}", b"the client key is for another onion service"),
        ):
            refused = await run(arguments)
            assert (refused.returncode, refused.stdout) == (WRONG_USAGE, b"")
            assert why in refused.stderr
