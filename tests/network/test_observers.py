"""What relays see of torkit beside what they see of C tor's client: rows of docs/observers.md."""

import re
import time
from collections.abc import Awaitable, Callable
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio
from network.recording import (
    ANSWER_LEN,
    CELL_LEN,
    EARLY,
    LATE_NAME,
    NAME,
    REVERSE_NAME,
    UPLOAD,
    Client,
    HopCell,
    Recording,
    c_tor,
    exits_ahead,
    guards_in_turn,
    record,
    record_widely,
    sets_ahead,
    time_of_refresh,
    torkit,
)
from network.torkit_process import skip_without

from torkit._fast.cells import Command, RelayCommand
from torkit.testing.relay import (
    NTOR,
    NTOR_V3,
    RELAY_CRYPT_CGO,
    FakeHop,
    FakeLink,
    decode_extend2,
    encode_extensions,
)

pytestmark = pytest.mark.network

CELL_BODY_LEN = 509
CREATE2_HEAD_LEN = 4
IPV4, RSA_ID, ED25519_ID = 0, 2, 3  # link specifiers
MISC = b"\1"  # a reason in END
NOTHING = encode_extensions([])
CC_AND_CGO = encode_extensions([(1, b""), (3, RELAY_CRYPT_CGO)])

# Requests to directories, by what occurs in them.
FIRST_CONSENSUS, CERTIFICATES, MICRODESCS = b"/tor/status-vote/", b"/tor/keys/", b"/tor/micro/"
NEWER_CONSENSUS = b"X-Or-Diff-From-Consensus"
ONION_DESCRIPTOR = b"/tor/hs/3/"

Alike = Callable[[Callable[[Recording], Any]], Any]
T = TypeVar("T")


def record_both(
    recorder: Callable[[Client, Path, int], Awaitable[T]],
    directories: pytest.TempPathFactory,
    clients: tuple[Client, Client] = (torkit, c_tor),
) -> tuple[T, T]:
    """Of torkit and of C tor's client, made at the same time."""

    async def record_all() -> tuple[T, T]:
        made: dict[Client, T] = {}
        now = int(time.time())

        async def record_one(client: Client, directory: Path) -> None:
            made[client] = await recorder(client, directory, now)

        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(record_one, client, directories.mktemp("client"))
        return made[clients[0]], made[clients[1]]

    return trio.run(record_all)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recording, Recording]:
    return record_both(record, tmp_path_factory)


@pytest.fixture(scope="module")
def wide_recordings(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recording, Recording]:
    return record_both(record_widely, tmp_path_factory)


@pytest.fixture
def alike(recordings: tuple[Recording, Recording]) -> Alike:
    return comparing(recordings)


@pytest.fixture
def alike_widely(wide_recordings: tuple[Recording, Recording]) -> Alike:
    return comparing(wide_recordings)


def comparing(recordings: tuple[T, T]) -> Callable[[Callable[[T], Any]], Any]:
    """Gives what is observed of torkit, if the same is observed of C tor."""

    def check(observe: Callable[[T], Any]) -> Any:
        ours, theirs = (observe(seen) for seen in recordings)
        assert ours == theirs
        return ours

    return check


def test_relays_have_nothing_to_complain_about(alike: Alike) -> None:
    assert alike(lambda seen: [text for relay in seen.relays.values() for text in relay.complaints]) == []


# --- The link ------------------------------------------------------------------------------------------


def test_a_relay_gets_one_connection_for_everything(alike: Alike) -> None:
    assert alike(lambda seen: {len(relay.links) for relay in seen.relays.values() if relay.links}) == {1}


def test_the_link_handshake_is_the_same_to_the_byte(alike: Alike) -> None:
    def observe(seen: Recording) -> set[tuple[tuple[int, bytes], ...]]:
        links = [link for relay in seen.relays.values() for link in relay.links]
        return {
            tuple((one.command, one.body) for one in seen.link_cells if one.link is link)[:2]
            for link in links
        }

    netinfo = bytes(4) + bytes([4, 4, 127, 0, 0, 1]) + b"\0"  # no time, the relay's address, none of ours
    versions = (Command.VERSIONS, bytes([0, 3, 0, 4, 0, 5]))
    assert alike(observe) == {(versions, (Command.NETINFO, netinfo.ljust(CELL_BODY_LEN, b"\0")))}


def test_no_other_cells_than_these_are_sent(alike: Alike) -> None:
    """None of AUTHENTICATE, DROP, PADDING_NEGOTIATE, XON. PADDING comes when it comes."""
    names = "CREATE_FAST CREATE2 DESTROY NETINFO RELAY RELAY_EARLY VERSIONS"
    assert alike(lambda seen: {one.command for one in seen.link_cells} - {Command.PADDING}) == {
        Command[name] for name in names.split()
    }
    names = "BEGIN BEGIN_DIR DATA END EXTEND2 RESOLVE SENDME"
    assert alike(lambda seen: {one.cell.command for one in seen.hop_cells}) == {
        RelayCommand[name] for name in names.split()
    }


def test_circuit_ids_have_the_top_bit_and_no_order(alike: Alike) -> None:
    def observe(seen: Recording) -> tuple[bool, bool]:
        creates = (Command.CREATE_FAST, Command.CREATE2)
        ids = [one.circ_id for one in seen.link_cells if one.command in creates]
        assert len(ids) > 3
        return all(one >> 31 == 1 for one in ids), any(abs(a - b) < 16 for a, b in pairwise(ids))

    assert alike(observe) == (True, False)


# --- TLS records: whoever watches the line sees where they end -----------------------------------------


def test_netinfo_goes_with_the_cell_that_opens_the_first_circuit(
    recordings: tuple[Recording, Recording],
) -> None:
    """C tor sends it alone where its scheduler ran within the last 10 ms and holds that cell back."""

    def observe(seen: Recording) -> list[bool]:
        numbers: dict[FakeLink, list[int]] = {}  # of each link's cells
        for number, one in enumerate(seen.link_cells):
            numbers.setdefault(one.link, []).append(number)
        return [[seen.record_of(number) for number in some[:3]] == [0, 1, 1] for some in numbers.values()]

    ours, theirs = (observe(seen) for seen in recordings)
    assert all(ours)
    assert any(theirs)


def test_a_request_goes_with_begin_dir(alike: Alike) -> None:
    def observe(seen: Recording) -> bool:
        pairs = [
            (begun, asked)
            for begun in seen.messages(RelayCommand.BEGIN_DIR)
            for asked in seen.requests(b"")
            if (asked.circuit, asked.cell.stream_id) == (begun.circuit, begun.cell.stream_id)
        ]
        assert len(pairs) >= 4
        return all(seen.record_of(begun.number) == seen.record_of(asked.number) for begun, asked in pairs)

    assert alike(observe) is True


def test_data_sent_early_goes_with_begin(alike: Alike) -> None:
    def observe(seen: Recording) -> bool:
        begun = seen.messages(RelayCommand.BEGIN)[-1]
        (early,) = (one for one in seen.hop_cells if one.cell.body == EARLY)
        return seen.record_of(begun.number) == seen.record_of(early.number)

    assert alike(observe) is True


def test_records_end_after_4048_bytes_and_after_32_cells(alike: Alike) -> None:
    """Counted from when there was nothing to send."""

    def observe(seen: Recording) -> tuple[bool, bool]:
        at, full, longer = 0, 0, 0
        link = seen.messages(RelayCommand.BEGIN)[1].circuit.link
        assert isinstance(link, FakeLink)
        for length in seen.records(link):
            room = min(4048 - at % 4048, 32 * CELL_LEN - at % (32 * CELL_LEN))
            full += length == room
            longer += length > room
            at = at + length if length == room else 0
        return full >= 8, longer > 0

    assert alike(observe) == (True, False)


# --- Building circuits ---------------------------------------------------------------------------------


def _handshakes(place: int) -> Callable[[Recording], set[tuple[int | None, bytes | None]]]:
    """Of the hop at this place of circuits to exits: the kinds, and what an ntor-v3 asks for.

    C tor may build others for onion services, which end elsewhere.
    """
    return lambda seen: {
        _handshake(one.hops[place])
        for one in seen.circuits(3)
        if seen.name_of(one.hops[2].relay).startswith("exit")
    }


def _handshake(hop: FakeHop) -> tuple[int | None, bytes | None]:
    return hop.handshake_type, hop.client_message


def test_a_guard_that_can_do_cgo_gets_an_ntor_v3_that_asks_for_nothing(alike: Alike) -> None:
    assert alike(_handshakes(0)) == {(NTOR_V3, NOTHING)}


def test_a_middle_that_cannot_do_cgo_gets_ntor(alike: Alike) -> None:
    assert alike(_handshakes(1)) == {(NTOR, None)}


def test_an_exit_is_asked_for_congestion_control_and_cgo(alike: Alike) -> None:
    assert alike(_handshakes(2)) == {(NTOR_V3, CC_AND_CGO)}


def test_control_cells_are_filled_with_zeros(alike: Alike) -> None:
    def observe(seen: Recording) -> bool:
        created = [one.body for one in seen.link_cells if one.command == Command.CREATE2]
        fast = [one.body for one in seen.link_cells if one.command == Command.CREATE_FAST]
        fills = [body[CREATE2_HEAD_LEN + int.from_bytes(body[2:4], "big") :] for body in created]
        fills += [body[20:] for body in fast]
        return any(any(fill) for fill in fills)

    assert alike(observe) is False


def test_circuits_are_built_in_three_cells(alike: Alike) -> None:
    def observe(seen: Recording) -> set[tuple[int, ...]]:
        return {tuple(one.command for one in seen.cells_of(circuit)[:3]) for circuit in seen.circuits(3)}

    assert alike(observe) == {(Command.CREATE2, Command.RELAY_EARLY, Command.RELAY_EARLY)}


def test_relay_early_is_for_the_first_eight_or_seven_cells_of_any_kind(alike: Alike) -> None:
    def observe(seen: Recording) -> bool:
        circuit = seen.messages(RelayCommand.BEGIN)[0].circuit
        commands = [one.command for one in seen.cells_of(circuit)[1:]]
        early = commands.index(Command.RELAY)
        rest = {Command.RELAY, Command.DESTROY}
        return (
            early in (7, 8)
            and set(commands[:early]) == {Command.RELAY_EARLY}
            and set(commands[early:]) == rest
        )

    assert alike(observe) is True


def test_a_hop_is_extended_to_by_one_address_and_both_identities(alike: Alike) -> None:
    """Though the middle relay has an IPv6 address, too."""

    def observe(seen: Recording) -> set[tuple[int, ...]]:
        bodies = [one.cell.body for one in seen.messages(RelayCommand.EXTEND2)]
        return {tuple(kind for kind, _ in decode_extend2(body)[0]) for body in bodies}

    assert alike(observe) == {(IPV4, RSA_ID, ED25519_ID)}


def test_relay_cells_are_filled_with_four_zeros_and_random_bytes(alike: Alike) -> None:
    def observe(seen: Recording) -> tuple[bool, bool]:
        fills = [one.cell.padding for one in seen.hop_cells if len(one.cell.padding) > 300]
        assert len(fills) > 10
        return any(any(fill[:4]) for fill in fills), all(len(set(fill)) > 100 for fill in fills)

    assert alike(observe) == (False, True)


def test_a_circuit_that_was_cut_off_is_destroyed_without_a_reason(alike: Alike) -> None:
    """And nothing is on the way out: a client that is stopped just closes its connections."""

    def observe(seen: Recording) -> list[bytes]:
        return [one.body for one in seen.link_cells if one.command == Command.DESTROY]

    assert alike(observe) == [bytes(CELL_BODY_LEN)]


# --- Streams -------------------------------------------------------------------------------------------


def _bodies(seen: Recording, command: RelayCommand) -> list[bytes]:
    """Those that exits get: a directory request that another has overtaken is ended, too."""
    return [one.cell.body for one in seen.messages(command) if one.hop == 3]


def test_begin_names_the_target_and_allows_and_prefers_ipv6(alike: Alike) -> None:
    targets = [f"{target}\0\0\0\0\5".encode() for target in (f"{NAME}:80", f"{NAME}:443", f"{LATE_NAME}:80")]
    assert alike(lambda seen: _bodies(seen, RelayCommand.BEGIN)) == targets


def test_resolve_asks_for_a_name_or_the_name_of_an_address(alike: Alike) -> None:
    names = [f"{name}\0".encode() for name in (NAME, REVERSE_NAME)]
    assert alike(lambda seen: _bodies(seen, RelayCommand.RESOLVE)) == names


def test_stream_ids_count_up_from_anywhere(alike: Alike) -> None:
    """By one, though C tor seldom passes over some."""

    def observe(seen: Recording) -> bool:
        begin = (RelayCommand.BEGIN, RelayCommand.BEGIN_DIR, RelayCommand.RESOLVE)
        begun = [one for one in seen.hop_cells if one.cell.command in begin]
        circuits = seen.circuits(1) + seen.circuits(3)
        ids = [[one.cell.stream_id for one in begun if one.circuit is circuit] for circuit in circuits]
        assert len({some[0] for some in ids if some}) > 1
        steps = [(b - a) % 65536 for some in ids for a, b in pairwise(some)]
        return all(0 < step < 16 for step in steps) and steps.count(1) > len(steps) / 2

    assert alike(observe) is True


def test_data_fills_cells(alike: Alike) -> None:
    def observe(seen: Recording) -> list[int]:
        stream_id = seen.messages(RelayCommand.BEGIN)[1].cell.stream_id
        cells = [one.cell for one in seen.messages(RelayCommand.DATA) if one.hop == 3]
        return [len(one.body) for one in cells if one.stream_id == stream_id]

    whole, rest = divmod(len(UPLOAD), 488)
    assert alike(observe) == [488] * whole + [rest]


def test_data_sent_early_goes_before_the_exits_answer(alike: Alike) -> None:
    """The exit answers after the look-ups."""

    def observe(seen: Recording) -> bool:
        (early,) = (one for one in seen.hop_cells if one.cell.body == EARLY)
        return seen.hop_cells.index(early) < seen.hop_cells.index(seen.messages(RelayCommand.RESOLVE)[0])

    assert alike(observe)


def test_only_a_stream_that_the_client_ends_gets_an_end_which_tells_nothing(alike: Alike) -> None:
    assert alike(lambda seen: _bodies(seen, RelayCommand.END)) == [MISC, MISC]


def test_sendmes_are_for_the_circuit_and_carry_the_tag_of_its_layer(alike: Alike) -> None:
    def observe(seen: Recording) -> list[tuple[int, bytes, int]]:
        cells = [one.cell for one in seen.messages(RelayCommand.SENDME)]
        return [(one.stream_id, one.body[:3], len(one.body)) for one in cells]

    count = -(-ANSWER_LEN // 488) // 31  # DATA cells, and how many of these one acknowledges
    assert alike(observe) == [(0, b"\1\0\x10", 19)] * count


# --- Directories ---------------------------------------------------------------------------------------


def _asked(what: bytes) -> Callable[[Recording], str]:
    """The first such request, but for the port of the relay and the digest of the consensus at hand."""

    def observe(seen: Recording) -> str:
        text = seen.requests(what)[0].cell.body.decode("ascii")
        return re.sub(r"(?<=Host: 127\.0\.0\.1:)\d+|(?<=Diff-From-Consensus: )[0-9A-F]{64}", "...", text)

    return observe


def test_a_first_consensus_is_asked_for_by_the_authorities_that_shall_have_signed_it(alike: Alike) -> None:
    text = alike(_asked(FIRST_CONSENSUS))
    assert re.match(
        r"GET /tor/status-vote/current/consensus-microdesc/\w{6}\+\w{6}\+\w{6}\.z HTTP/1\.0\r\n", text
    )


def test_a_request_does_not_wait_for_connected(alike: Alike) -> None:
    """That nobody says before it has come."""
    assert alike(lambda seen: len(seen.requests(b"")) >= 4) is True


def test_certificates_are_asked_for_by_authority(alike: Alike) -> None:
    voters = "+".join(one.hex().upper() for one in alike(lambda seen: seen.voters))
    assert alike(_asked(CERTIFICATES)).startswith(f"GET /tor/keys/fp/{voters} HTTP/1.0\r\n")


def test_microdescriptors_are_asked_for_in_the_order_of_their_digests(alike: Alike) -> None:
    assert alike(_asked(MICRODESCS)).count("-") >= 5


def test_a_newer_consensus_is_asked_for_by_what_is_at_hand(alike: Alike) -> None:
    lines = alike(_asked(NEWER_CONSENSUS)).split("\r\n")
    assert [line.partition(":")[0] for line in lines[1:-2]] == [
        "Host",
        "If-Modified-Since",
        "Accept-Encoding",
        "X-Or-Diff-From-Consensus",
    ]


def test_a_directory_without_known_keys_gets_create_fast_and_a_guard_what_an_exit_gets(alike: Alike) -> None:
    def hop(one: HopCell) -> FakeHop:
        assert len(one.circuit.hops) == 1
        return one.circuit.hops[0]

    kinds = (FIRST_CONSENSUS, CERTIFICATES, MICRODESCS, NEWER_CONSENSUS)
    assert alike(lambda seen: [_handshake(hop(seen.requests(what)[0])) for what in kinds]) == [
        *[(None, None)] * 3,
        (NTOR_V3, CC_AND_CGO),
    ]


def test_a_circuit_to_a_directory_is_kept_and_used_again(alike: Alike) -> None:
    def observe(seen: Recording) -> tuple[bool, bool]:
        consensus, certificates = (seen.requests(what)[0].circuit for what in (FIRST_CONSENSUS, CERTIFICATES))
        return consensus is certificates, consensus in seen.kept

    assert alike(observe) == (True, True)


def test_the_first_microdescriptors_come_from_guards(alike: Alike) -> None:
    def observe(seen: Recording) -> bool:
        asked = {seen.name_of(one.circuit.hops[0].relay) for one in seen.requests(MICRODESCS)}
        return asked <= {"guard0", "guard1", "guard2"}

    assert alike(observe) is True


# --- A wider network: more relays than one for the middle, and many microdescriptors -------------------


@skip_without("strace")
def test_nobody_but_relays_is_connected_to(alike_widely: Alike) -> None:
    def observe(seen: Recording) -> bool:
        return seen.peers == {relay.address for relay in seen.relays.values() if relay.links}

    assert alike_widely(observe) is True


@skip_without("strace")
def test_a_middle_that_can_do_cgo_gets_an_ntor_v3_that_asks_for_nothing(alike_widely: Alike) -> None:
    def observe(seen: Recording) -> set[tuple[int | None, bytes | None]]:
        middles = [one.hops[1] for one in seen.circuits(3)]
        return {_handshake(hop) for hop in middles if seen.name_of(hop.relay) != "middle"}

    assert alike_widely(observe) == {(NTOR_V3, NOTHING)}


@skip_without("strace")
def test_microdescriptors_are_asked_for_in_three_equal_parts(alike_widely: Alike) -> None:
    """Each part once, or of another directory too where a busy machine keeps the first one's answer."""

    def observe(seen: Recording) -> list[int]:
        paths = {one.split()[1] for one in seen.whole_requests(MICRODESCS)}
        return sorted(path.count(b"-") + 1 for path in paths)

    assert alike_widely(observe) == [35, 37, 37]


@skip_without("strace")
def test_who_reads_late_has_xoff_and_xon_sent(alike_widely: Alike) -> None:
    """C tor may send more of them as the reader drains what it holds."""

    def observe(seen: Recording) -> list[int]:
        commands = (RelayCommand.XOFF, RelayCommand.XON)
        return [one.cell.command for one in seen.hop_cells if one.cell.command in commands][:2]

    assert alike_widely(observe) == [RelayCommand.XOFF, RelayCommand.XON]


@skip_without("strace")
def test_data_for_a_stream_that_is_none_ends_the_circuit_and_with_c_tor_it_does_not(
    wide_recordings: tuple[Recording, Recording],
) -> None:
    assert [seen.outlived_breach for seen in wide_recordings] == [False, True]


@skip_without("strace")
def test_an_onion_services_directory_is_asked_at_the_end_of_four_hops(alike_widely: Alike) -> None:
    """The target is asked for no more than a middle is."""

    def observe(seen: Recording) -> set[tuple[int, str, bool]]:
        circuits = [one.circuit for one in seen.requests(ONION_DESCRIPTOR)]
        places = [(one, [seen.name_of(hop.relay) for hop in one.hops]) for one in circuits]
        asked_for = {True: (NTOR, None), False: (NTOR_V3, NOTHING)}  # by whether it is the one without CGO
        return {
            (len(names), names[0][:-1], _handshake(one.hops[-1]) == asked_for[names[-1] == "middle"])
            for one, names in places
        }

    assert alike_widely(observe) == {(4, "guard", True)}


@skip_without("strace")
def test_a_request_at_the_end_of_several_hops_has_no_accept_encoding(alike_widely: Alike) -> None:
    def observe(seen: Recording) -> list[str]:
        text = seen.requests(ONION_DESCRIPTOR)[0].cell.body.decode("ascii")
        lines = re.sub(r"(?<=/tor/hs/3/)\S+|(?<=Host: 127\.0\.0\.1:)\d+", "...", text)
        return lines.split("\r\n")

    assert alike_widely(observe) == ["GET /tor/hs/3/... HTTP/1.0", "Host: 127.0.0.1:...", "", ""]


def test_a_newer_consensus_is_fetched_in_the_time_in_which_c_tor_fetches_it(tmp_path: Path) -> None:
    """From 3/4 of an interval past fresh-until, for 7/8 of what is left. Three clients of each kind."""
    lifetime, interval = 60, 20
    first = interval + 3 * interval // 4
    last = first + (lifetime - first) * 7 / 8
    clients = {"torkit": torkit, "C tor": c_tor}
    seconds: dict[str, list[float]] = {name: [] for name in clients}

    async def note(name: str, number: int) -> None:
        directory = tmp_path / f"{name}{number}"
        directory.mkdir()
        when = inf
        try:
            when = await time_of_refresh(clients[name], directory, valid_after, lifetime)
        except* trio.TooSlowError:
            pass  # whose it was is told below
        seconds[name].append(when)

    async def note_all() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(3):
                for name in clients:
                    nursery.start_soon(note, name, number)

    valid_after = int(time.time()) - first + 8  # all have begun by then
    trio.run(note_all)
    # What comes to `last` is what a busy machine takes.
    outside = {
        name: [one for one in some if not first <= one < (last + lifetime) / 2]
        for name, some in seconds.items()
    }
    assert outside == {"torkit": [], "C tor": []}


@skip_without("strace")
def test_three_sets_of_two_circuits_are_linked_ahead_and_another_once_one_is_used(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Each leg right after its last hop: with no number either way, and the wish for a high throughput."""
    (ours, told), theirs = record_both(sets_ahead, tmp_path_factory)
    assert (ours, told) == theirs
    assert ours == [[2] * 3, [2] * 4]
    idle = (f"CONFLUX_LINK 01 {bytes(16).hex()}03", "CONFLUX_LINKED_ACK")
    assert told == {idle, (*idle, "BEGIN")}


def test_two_circuits_to_exits_are_built_ahead_and_another_once_one_is_used(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    ours, theirs = record_both(exits_ahead, tmp_path_factory)
    assert ours == theirs == [2, 3]


def test_the_next_guard_is_the_one_that_was_sampled_next(tmp_path_factory: pytest.TempPathFactory) -> None:
    for used, sampled in record_both(guards_in_turn, tmp_path_factory):
        assert used == sampled[:2]
        assert sorted(sampled) == ["guard0", "guard1", "guard2"]
