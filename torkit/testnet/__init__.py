"""A private Tor network of real `tor` processes on loopback, and the small DNS server its exits ask.

    async with run_testnet() as net: ...      ready in about 10 s; everything ends with the block
    up(directory); down(directory)            the same, kept by a detached supervisor
    run_command(["curl", ...])                the same, for the length of one command

One process *owns* a network: whoever entered `run_testnet`, or the supervisor. It holds a lock on the
directory for as long as it lives, and every tor process looks for it every 15 s, so nothing survives an owner
that is killed.

    DIRECTORY/lock           held by the owner; contains its process id
    DIRECTORY/network.toml   appears when the network is ready, goes when it ends
    DIRECTORY/state.json     what other processes need to know of it
    DIRECTORY/tor/NICKNAME/  torrc, log and data of one tor process

Ready means that a client can bootstrap at once: every authority serves a consensus in which every relay has
its flags, and every relay holds that consensus and its microdescriptors. Nothing here is secret or safe: keys
have a known passphrase, and exits reach the machine's own loopback.
"""

from torkit.testnet.files import owner
from torkit.testnet.model import Check, Options, Relay
from torkit.testnet.network import Testnet, run_testnet
from torkit.testnet.services import answer_name
from torkit.testnet.supervisor import down, run_command, up
from torkit.testnet.verify import verify

__all__ = [
    "Check",
    "Options",
    "Relay",
    "Testnet",
    "answer_name",
    "down",
    "owner",
    "run_command",
    "run_testnet",
    "up",
    "verify",
]
