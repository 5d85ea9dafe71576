"""The one circuit that a probe gets: streams and look-ups through it, and how many bytes they took."""

from collections.abc import Hashable
from ipaddress import ip_address
from typing import NamedTuple

from torkit.errors import EndReason, StreamClosed, TimedOut
from torkit.net.circuit.circuit import Circuit
from torkit.net.circuit.stream import Stream, ended_by
from torkit.proto.destination import check_destination, is_internal, parse_address
from torkit.proto.messages import ResolvedError

MAX_STREAMS = 1024  # implementation limit: of one probe


class Answer(NamedTuple):
    """One answer to a look-up: `kind` is `ipv4`, `ipv6` or `hostname`; `ttl` in seconds."""

    kind: str
    value: str
    ttl: int


class Way:
    """`allow_internal` on networks where addresses that are internal elsewhere are none."""

    def __init__(self, circuit: Circuit, *, allow_internal: bool) -> None:
        self.circuit = circuit
        self._allow_internal = allow_internal
        self._streams: list[Stream] = []

    def begin(self, host: str, port: int) -> Stream:
        """Ask the exit to connect. Raises UsageError for what none can reach, or what ended the circuit."""
        host = check_destination(host, allow_internal=self._allow_internal)
        if len(self._streams) == MAX_STREAMS:
            message = f"one probe may open {MAX_STREAMS} streams"
            raise StreamClosed(message, reason=EndReason.RESOURCELIMIT)
        stream = self.circuit.begin(host, port)
        self._streams.append(stream)
        return stream

    async def connect(self, host: str, port: int) -> Stream:
        """A stream to `host`. Raises StreamClosed with the exit's reason, or what has ended the circuit."""
        stream = self.begin(host, port)
        try:
            await stream.wait_connected()
        except BaseException:
            stream.close()
            raise
        return stream

    async def look_up(self, host: str) -> list[Answer]:
        """The addresses of a name, or for an address its names, as the exit says, internal ones among them.

        Raises as `connect` does; StreamClosed with RESOLVEFAILED where there are none.
        """
        host = check_destination(host, allow_internal=self._allow_internal)
        found = []
        for answer in await self.circuit.resolve(parse_address(host) or host):
            if isinstance(answer.value, str):
                found.append(Answer("hostname", answer.value, answer.ttl))
            elif not isinstance(answer.value, ResolvedError):
                found.append(Answer(f"ipv{answer.value.version}", str(answer.value), answer.ttl))
        if not found:
            raise ended_by(self.circuit, EndReason.RESOLVEFAILED)
        return found

    # --- as the upstream of a proxy ---------------------------------------------------------------

    async def resolve(self, host: str, *, isolation: Hashable = None) -> list[Answer]:
        """As `look_up`, without what is internal: a program would connect to somebody else's."""
        found = await self.look_up(host)
        if not self._allow_internal:
            found = [one for one in found if one.kind == "hostname" or not is_internal(ip_address(one.value))]
        if not found:
            raise ended_by(self.circuit, EndReason.RESOLVEFAILED)
        return found

    def request(self, host: str, port: int, *, isolation: Hashable = None) -> "Once":
        """A stream for a client of the proxy."""
        return Once(self, host, port)

    # ----------------------------------------------------------------------------------------------

    @property
    def bytes(self) -> tuple[int, int]:
        """What its streams have sent and received."""
        sent = sum(stream.sent for stream in self._streams)
        return sent, sum(stream.received for stream in self._streams)


class Once:
    """One stream that a client of the proxy asks for: it is tried on this circuit, and nowhere else."""

    def __init__(self, way: Way, host: str, port: int) -> None:
        self._way = way
        self._target = host, port
        self._stream: Stream | None = None

    def begin(self) -> Stream:
        self._stream = self._way.begin(*self._target)
        return self._stream

    async def connect(self) -> Stream:
        if self._stream is None:
            return await self._way.connect(*self._target)
        if self._stream.failure is not None:
            raise self._stream.failure
        self._stream.close()
        raise TimedOut("the exit has not answered in time")
