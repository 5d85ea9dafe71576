"""A DNS server for programs: names get made-up addresses, or are looked up at an exit.

With an automap no name is looked up at all: an answer comes at once, and the exit looks up the name when the
program connects. Names of this machine are answered here, and those of its neighbours not at all. Names are
never logged.
"""

import socket
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import trio

from torkit._fast.sources import Local, LocalEvent
from torkit.errors import EndReason, InternalError, PeerError, StreamClosed, TorkitError, UsageError
from torkit.net.faults import log_fault
from torkit.net.proxy.deadlines import deadline
from torkit.net.proxy.isolation import Isolation, Origin
from torkit.net.proxy.shared import CONNECT_TIMEOUT, Proxy
from torkit.proto.automap import Automap, is_made_up
from torkit.proto.destination import check_host, parse_address
from torkit.proto.dns import Code, Query, Type, address_of_reverse_name, encode_answer, parse_query
from torkit.proto.request import Command, Request

# Implementation limits.
READ_SIZE = 4096  # bytes of a query; with EDNS it has some hundred
READ_PER_TURN = 64  # queries, before other tasks have their turn
MAX_LOOKUPS = 256  # look-ups at once, of one listener; further askers ask again
TTL = 60  # seconds for which an answer may be remembered (as C tor's)

LOCALHOST: dict[Type, IPv4Address | IPv6Address] = {
    Type.A: IPv4Address("127.0.0.1"),
    Type.AAAA: IPv6Address("::1"),
}
KINDS = {Type.A: "ipv4", Type.AAAA: "ipv6", Type.PTR: "hostname"}

Found = list[IPv4Address | IPv6Address | str]


class DnsListener:
    """Owns `sock`, a bound UDP socket.

    `check` raises UsageError for hosts that no exit shall be asked for.
    """

    _proxy: Proxy
    _source: Local | None = None

    def __init__(
        self,
        sock: socket.socket,
        check: Callable[[str], str],
        automap: Automap | None = None,
        isolation: Isolation | None = None,
    ) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._address = sock.getsockname()[:2]
        self._check = check
        self._automap = automap
        self._isolation = isolation  # its own, else the proxy's
        self._lookups = 0
        self._is_idle = trio.Event()  # once no look-up is under way, where somebody waits for that

    def open(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._source = proxy.pump.add_local(self._socket.fileno(), self)

    def watch(self, is_wanted: bool) -> None:
        """Do nothing: a question needs no room."""

    async def finish(self) -> None:
        """Answer the questions that have come, and close."""
        try:
            while not self._read():
                await trio.lowlevel.checkpoint()
            assert self._source is not None
            self._proxy.pump.watch_reading(self._source, False)
            while self._lookups:
                self._is_idle = trio.Event()
                await self._is_idle.wait()
        except Exception as error:
            log_fault(InternalError.ending("a listener", error))
        finally:
            self.close()

    def close(self) -> None:
        if self._source is not None:
            self._proxy.pump.remove(self._source)
            self._source = None
        self._socket.close()

    def on_local(self, event: LocalEvent) -> None:
        self._read()

    def _read(self) -> bool:
        """Read questions and answer them. Returns whether none is left."""
        for _ in range(READ_PER_TURN):
            try:
                packet, sender = self._socket.recvfrom(READ_SIZE)
            except BlockingIOError:
                return True
            except OSError:
                continue  # an earlier answer could not be delivered
            try:
                query = parse_query(packet)
            except PeerError:
                continue
            self._serve(query, sender)
        return False

    def on_fault(self, error: InternalError) -> None:
        """Go on after a fault of ours: the next question may fare better."""
        if self._source is None or not self._source.is_watched:
            self._source = self._proxy.pump.add_local(self._socket.fileno(), self)

    def _serve(self, query: Query, sender: Any) -> None:
        if query.type is None:
            self._answer(query, sender, Code.NOTIMP)
            return
        try:
            host, found = self._find(query, query.type)
        except UsageError:
            self._answer(query, sender, Code.NXDOMAIN)
            return
        if found is not None:
            self._answer(query, sender, Code.NOERROR, found)
            return
        if self._lookups < MAX_LOOKUPS:
            self._lookups += 1
            self._proxy.nursery.start_soon(self._look_up, query, query.type, host, sender)

    def _find(self, query: Query, asked: Type) -> tuple[str, Found | None]:
        """Returns an answer, or the host to look up. Raises UsageError where there is no such name."""
        name = query.name.lower()
        if asked is Type.PTR:
            address = address_of_reverse_name(name)
            if address is None:
                raise UsageError("no reverse name")
            if address.is_loopback:
                return name, ["localhost"]
            if is_made_up(address):
                made_for = None if self._automap is None else self._automap.name_of(address)
                if made_for is None:
                    raise UsageError("an address without a name")
                return name, [made_for]
            return self._check(str(address)), None
        if name == "localhost" or name.endswith(".localhost"):
            return name, [LOCALHOST[asked]]
        if "." not in name or parse_address(name) is not None:
            raise UsageError("a name of this machine's network, or an address")
        host = self._check(name)
        if self._automap is None:
            return host, None
        ipv4, ipv6 = self._automap.addresses_of(host)
        return host, [ipv6] if asked is Type.AAAA else [ipv4]

    async def _look_up(self, query: Query, asked: Type, host: str, sender: Any) -> None:
        try:
            code, found = await self._resolve(asked, host, sender)
        finally:
            self._lookups -= 1
            if not self._lookups:
                self._is_idle.set()
        self._answer(query, sender, code, found)

    async def _resolve(self, asked: Type, host: str, sender: Any) -> tuple[Code, Found]:
        command = Command.RESOLVE_PTR if asked is Type.PTR else Command.RESOLVE
        origin = Origin(sender[0], self._address, self._isolation or self._proxy.isolation)
        isolation = origin.key(Request(command, host, 0))
        try:
            with deadline(CONNECT_TIMEOUT, "a look-up"):
                answers = await self._proxy.upstream.resolve(host, isolation=isolation)
        except TorkitError as error:
            self._proxy.journal.note_refusal("a look-up", error)
            is_none = isinstance(error, StreamClosed) and error.reason is EndReason.RESOLVEFAILED
            return Code.NXDOMAIN if is_none else Code.SERVFAIL, []
        found: Found = []
        for answer in answers:
            if answer.kind == KINDS[asked]:
                try:
                    value = check_host(answer.value)
                except UsageError:
                    continue
                self._proxy.leaks.note_told(value)
                found.append(parse_address(value) or value)
        return Code.NOERROR, found

    def _answer(self, query: Query, sender: Any, code: Code, found: Found | None = None) -> None:
        try:
            self._socket.sendto(encode_answer(query, code, found or [], ttl=TTL), sender)
        except OSError:
            return  # nobody waits any more, or the system is short of memory: the program asks again
