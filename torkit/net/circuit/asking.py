"""What is asked of an exit to see how long a round trip takes: nothing leaves it."""

import os
from ipaddress import IPv4Address

from torkit.errors import StreamClosed
from torkit.net.circuit.circuit import Circuit

ADDRESS_BITS = 24  # of 0.0.0.0/8


async def ask_exit(circuit: Circuit) -> None:
    """One round trip to the exit, which refuses, for whatever reason. Raises what has ended the circuit."""
    nonce = IPv4Address(int.from_bytes(os.urandom(ADDRESS_BITS // 8)))
    stream = circuit.begin_probe(nonce)
    try:
        await stream.wait_connected()
    except StreamClosed:
        if circuit.error is not None:
            raise
    finally:
        stream.close()
