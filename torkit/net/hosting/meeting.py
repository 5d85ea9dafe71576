"""One client, met at the rendezvous point that it has chosen."""

import os
from collections.abc import Callable

import trio

from torkit._fast.cells import RelayCommand
from torkit._fast.hs_ntor import HsNtorRequest
from torkit._fast.keys import wipe
from torkit.errors import CircuitError, Closed, TimedOut
from torkit.hs.introduction import relay_at
from torkit.hs.keys import KEY_LEN
from torkit.hs.service_messages import RENDEZVOUS1_LEN, Invitation, encode_rendezvous1
from torkit.net.circuit.circuit import Circuit
from torkit.net.circuit.stream import Stream
from torkit.net.circuits.purpose import ServiceRendezvous
from torkit.net.hosting.means import Means

# As C tor, seconds: after that the client has given up.
MEETING_TIMEOUT = 30.0

_NAME = "a rendezvous point"


async def meet(
    means: Means,
    request: HsNtorRequest,
    invitation: Invitation,
    take: Callable[[Stream, bytes], None],
) -> Circuit:
    """A circuit that has joined with the client's, which then begins streams; the caller closes it.

    Raises what made it fail, TimedOut, CircuitError for a rendezvous point that cannot be one.
    """
    relay = relay_at(
        _NAME,
        invitation.link_specifiers,
        invitation.onion_key,
        allow_internal=means.current.testing,
    )
    left = means.current.param("hs_service_max_rdv_failures")
    try:
        with trio.fail_after(MEETING_TIMEOUT):
            while True:
                try:
                    circuit = await means.stems.build(ServiceRendezvous(relay), request.client_key)
                    await means.stems.extend(circuit, relay)
                    break
                except (Closed, TimedOut):
                    left -= 1
                    if not left:
                        raise
    except trio.TooSlowError:
        raise TimedOut(f"the rendezvous point was not reached within {MEETING_TIMEOUT:.0f} s") from None
    private_key = os.urandom(KEY_LEN)
    try:
        reply, keys = request.answer(private_key)
    except CircuitError:
        circuit.close("the client cannot be answered")
        raise
    finally:
        wipe(private_key)
    layer = keys.service_layer()
    keys.wipe()
    body = encode_rendezvous1(invitation.cookie, reply, os.urandom(RENDEZVOUS1_LEN))
    circuit.tell(RelayCommand.RENDEZVOUS1, body)
    sendme_inc = means.sendme_inc if invitation.wants_congestion_control else None
    circuit.let_in(layer, sendme_inc, take)
    return circuit
