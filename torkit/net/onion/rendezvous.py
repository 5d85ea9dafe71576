"""A rendezvous point: a circuit to a relay of our choice, which keeps our cookie until the service comes."""

import os
from collections.abc import Hashable

import trio

from torkit._fast.cells import RelayCommand
from torkit.errors import TimedOut, TorkitError
from torkit.hs.messages import COOKIE_LEN
from torkit.net.circuit.circuit import Circuit
from torkit.net.onion.stems import Stems
from torkit.proto.setup_padding import Machine, SetupPadding


class RendezvousPoint:
    """Makes its cookie, before anything is sent: nobody else has had the cookie."""

    def __init__(self) -> None:
        self.cookie = os.urandom(COOKIE_LEN)
        self._circuit: Circuit | None = None
        self._error: TorkitError | None = None
        self._is_over = trio.Event()
        self._is_closed = False

    async def make(self, stems: Stems, isolation: Hashable) -> None:
        """Build the circuit, and have its last relay wait for the cookie."""
        circuit: Circuit | None = None
        try:
            circuit = await stems.to_rendezvous_point(isolation)
            with trio.fail_after(stems.timeouts.use):
                await circuit.ask(
                    RelayCommand.ESTABLISH_RENDEZVOUS, self.cookie, RelayCommand.RENDEZVOUS_ESTABLISHED
                )
            circuit.pad(SetupPadding(Machine.RENDEZVOUS))
            if not self._is_closed:
                circuit, self._circuit = None, circuit
        except TorkitError as error:
            self._error = error
        except trio.TooSlowError:
            self._error = TimedOut("the rendezvous point did not answer in time")
        finally:
            if circuit is not None:
                circuit.close()
            self._is_over.set()

    @property
    def has_failed(self) -> bool:
        """Whether no service can come here any more."""
        if self._circuit is not None:
            return self._circuit.error is not None
        return self._error is not None or self._is_closed

    async def wait(self) -> Circuit:
        """Returns the circuit when it is ready. Raises what made it fail."""
        await self._is_over.wait()
        if self._circuit is None:
            raise TimedOut("the rendezvous point was given up") if self._error is None else self._error.anew()
        return self._circuit

    def take(self) -> Circuit:
        """Returns the circuit; the caller closes it from now on."""
        assert self._circuit is not None
        circuit, self._circuit = self._circuit, None
        return circuit

    def close(self) -> None:
        self._is_closed = True
        if self._circuit is not None:
            self._circuit.close()
