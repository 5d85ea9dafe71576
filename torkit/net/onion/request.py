"""One stream to an onion service, tried until the service answers. (To exits: net/circuits/request.py.)"""

from collections.abc import Hashable

import trio

from torkit.errors import EndReason, StreamClosed, TimedOut
from torkit.events import StreamNew
from torkit.hs.address import parse_address
from torkit.net.circuit.circuit import Circuit
from torkit.net.circuit.stream import Stream
from torkit.net.circuits.request import BROKEN_CIRCUIT, MAX_FAILURES, STREAM_TIMEOUT
from torkit.net.onion.services import Key, OnionServices


class OnionRequest:
    """Knows which stream is wanted, of which service. Serves for one stream only."""

    def __init__(self, services: OnionServices, host: str, port: int, *, isolation: Hashable = None) -> None:
        """Raises OnionServiceError (ADDRESS) where `host` is no onion address."""
        self._services = services
        self._key = Key(services.identity, isolation, parse_address(host))
        self._port = port
        self._begun: tuple[Stream, Circuit] | None = None
        self._failure_count = 0
        self._journal = services.journal
        self.id = self._journal.next_stream()
        if self._journal.is_heard:
            self._journal.tell(StreamNew(self.id))

    def begin(self) -> Stream | None:
        """Make the first attempt at once. Returns an unanswered stream, or None without a joined circuit."""
        circuit = self._services.find(self._key)
        if circuit is None:
            return None
        self._begun = self._begin(circuit), circuit
        return self._begun[0]

    async def connect(self) -> Stream:
        """Make the attempts that are left. Returns a stream that the service has answered.

        What the service answers is final; where a circuit ends instead, the service is met again. Raises
        StreamClosed with the service's reason, TimedOut, or as `Meeting.run`.
        """
        give_up_at = trio.current_time() + STREAM_TIMEOUT
        with self._journal.telling_end(self.id):
            if self._begun is not None:
                stream, circuit = self._begun
                stream.close()
                if stream.failure is not None and not self._note_failure(circuit, stream.failure):
                    raise stream.failure
            while True:
                circuit, worked = await self._services.acquire(self._key, give_up_at)
                give_up_at += worked  # the service asks for the work, so its time does not count
                stream = self._begin(circuit)
                try:
                    with trio.fail_at(give_up_at):
                        await stream.wait_connected()
                except StreamClosed as error:
                    stream.close()
                    if not self._note_failure(circuit, error):
                        raise
                except trio.TooSlowError:
                    stream.close()
                    raise TimedOut("the onion service has not answered") from None
                except BaseException:
                    stream.close()
                    raise
                else:
                    return stream

    def _begin(self, circuit: Circuit) -> Stream:
        circuit.watch.note_use()
        return circuit.begin_service(self._port, self.id)

    def _note_failure(self, circuit: Circuit, failure: StreamClosed) -> bool:
        """Close the circuit where it is at fault. Returns whether to meet the service again.

        That is of no use where the service has answered, nor after MAX_FAILURES.
        It does not raise `failure`: the traceback would hold this call, which holds the failure.
        """
        if failure.reason not in BROKEN_CIRCUIT:
            circuit.watch.note_used()
            if failure.reason is EndReason.DONE:  # as C tor's services answer
                raise StreamClosed("the onion service has nothing at this port (DONE)", reason=failure.reason)
            return False
        circuit.watch.note_broken()
        circuit.close("the onion service broke a stream")
        self._failure_count += 1
        return self._failure_count < MAX_FAILURES
