"""The private networks of a session's tests: whose keys they have, and which relay of one says more."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from torkit.testnet import Options, Relay, in_thread
from torkit.testnet.in_thread import RunningTestnet
from torkit.testnet.keys import make_keys

__all__ = ["WATCHED", "RunningTestnet", "keys_made_once", "running_testnet"]

WATCHED = "middle2"  # the relay of the session's network that logs more; see conftest.py


@dataclass(frozen=True)
class _Made:
    """What making the keys of a relay has left: its identities, and its files by their place in `data`."""

    identities: dict[str, str]
    files: dict[Path, bytes]

    @classmethod
    def of(cls, relay: Relay) -> "_Made":
        data = relay.data_directory
        files = {path.relative_to(data): path.read_bytes() for path in data.rglob("*") if path.is_file()}
        identities = {name: getattr(relay, name) for name in ("fingerprint", "ed25519", "v3ident")}
        return cls(identities, files)

    def give_to(self, relay: Relay) -> None:
        for place, content in self.files.items():
            path = relay.data_directory / place
            path.parent.mkdir(mode=0o700, exist_ok=True)
            path.write_bytes(content)
            path.chmod(0o600)
        for name, value in self.identities.items():
            setattr(relay, name, value)


_made: dict[str, _Made] = {}  # by nickname


async def keys_made_once(relays: Sequence[Relay]) -> None:
    """As `make_keys`; relays of one nickname have the same keys in every network of this process."""
    new = [relay for relay in relays if relay.nickname not in _made]
    await make_keys(new)
    for relay in relays:
        if relay in new:
            _made[relay.nickname] = _Made.of(relay)
        else:
            _made[relay.nickname].give_to(relay)


@contextmanager
def running_testnet(directory: Path, options: Options | None = None) -> Iterator[RunningTestnet]:
    """As torkit's own, with keys that are made once: they are two thirds of the processor's time for a start.

    Ports and data directories are each network's own. The networks of test_testnet.py, which are about
    the start itself, make all keys.
    """
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("torkit.testnet.network.make_keys", keys_made_once)
            net = stack.enter_context(in_thread.running_testnet(directory, options))
        yield net
