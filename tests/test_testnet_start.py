"""How a private network starts, without tor: the first vote, and what a consensus has to have."""

import re
import time
from base64 import b64encode
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path

import pytest

from torkit.testnet import Options, network, ready
from torkit.testnet.model import Relay, planned_relays
from torkit.testnet.network import Testnet
from torkit.testnet.ready import Incomplete, consensus_is_complete, read_consensus

ENTRY = """\
r {name} {identity} 2038-01-01 00:00:00 127.10.0.1 9001 0
m {digest}
s Exit Guard Running Stable V2Dir Valid
v Tor 0.4.9.11
w Bandwidth={bandwidth}
"""


def relays() -> list[Relay]:
    planned = planned_relays(Path("nowhere"), Options())
    for number, relay in enumerate(planned):
        relay.fingerprint = f"{number:040X}"
    return planned


def consensus(bandwidth: Callable[[int], str], *, signatures: int = 3) -> str:
    entries = [
        ENTRY.format(
            name=f"r{number}",
            identity=b64encode(number.to_bytes(20)).decode().rstrip("="),
            digest="d",
            bandwidth=bandwidth(number),
        )
        for number in range(9)
    ]
    times = "valid-after 2026-11-29 12:00:00\nvalid-until 2026-11-29 13:00:00\n"
    return times + "".join(entries) + signatures * "directory-signature x\n"


def without_one_vote(number: int) -> str:
    """What tor writes where one of three authorities' votes has no measurements, or is missing."""
    return "1 Unmeasured=1" if number == 3 else "0 Unmeasured=1"


def test_a_consensus_has_to_have_measurements() -> None:
    """Without, all paths led through the one relay with a bandwidth: when that was killed, there was none."""
    complete = read_consensus(consensus(lambda number: "10000"))
    assert complete.missing(relays()) == ""
    by_others = read_consensus(consensus(lambda number: "10000" if number > 2 else "1 Unmeasured=1"))
    assert by_others.missing(relays()) == ""  # no authority measures itself
    assert "exit1 (bandwidth)" in read_consensus(consensus(without_one_vote)).missing(relays())
    few = [relay for relay in relays() if relay.nickname not in ("auth2", "auth3")]
    assert read_consensus(consensus(without_one_vote)).missing(few) == ""  # they cannot measure


async def test_a_consensus_that_lacks_something_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    served = consensus(without_one_vote, signatures=1)

    async def fetch(authority: Relay) -> ready.Consensus:
        return read_consensus(served)

    monkeypatch.setattr(ready, "fetch_consensus", fetch)
    assert not await consensus_is_complete(relays())  # the others have yet to sign
    served = consensus(without_one_vote)
    with pytest.raises(Incomplete, match="bandwidth"):
        await consensus_is_complete(relays())


async def test_all_authorities_wait_for_the_same_first_consensus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One look at the clock for each: where a second began between two, they rejected each other's votes."""
    net = Testnet(tmp_path, Options(), dns_port=53)
    for relay in net.relays:
        relay.data_directory.mkdir(parents=True)

    async def do_nothing(*_: object) -> None:
        pass

    class Process:
        def send_signal(self, number: int) -> None:
            pass

    monkeypatch.setattr(net, "_spawn_relay", do_nothing)
    monkeypatch.setattr(net, "_wait_for", do_nothing)
    monkeypatch.setattr(net, "_processes", {relay.nickname: Process() for relay in net.relays})
    monkeypatch.setattr(time, "time", partial(next, count(1_700_000_000)))
    monkeypatch.setattr(network, "dir_authority", str)
    await net._launch()
    torrcs = [relay.torrc.read_text() for relay in net.authorities]
    offsets = [re.findall(r"^TestingV3AuthVotingStartOffset .*", torrc, re.MULTILINE) for torrc in torrcs]
    assert offsets[0]
    assert offsets == [offsets[0]] * 3


async def test_a_network_that_starts_again_forgets_all_but_its_keys(tmp_path: Path) -> None:
    net = Testnet(tmp_path, Options(), dns_port=53)
    for relay in net.relays:
        for name in ("keys", "diff-cache"):
            (relay.data_directory / name).mkdir(parents=True)
            (relay.data_directory / name / "file").touch()
        (relay.data_directory / "cached-microdesc-consensus").touch()
    net._forget_directory()
    for relay in net.relays:
        assert [path.name for path in relay.data_directory.iterdir()] == ["keys"]
        assert (relay.data_directory / "keys" / "file").exists()
