"""Documents in files, and the command line run on them."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import network_docs as nd
import pytest

from torkit.cli.app import run_command_line
from torkit.testing.directory import RelayDoc, encode_microdescs

NOW = datetime.fromtimestamp(nd.NOW, UTC).isoformat()

EXIT, GUARD, PLAIN = (f"{kind}Fast HSDir Running Stable V2Dir Valid" for kind in ("Exit ", "Guard ", ""))
GEOIP = "# made for tests\n167772160,167772415,AA\n167772672,167772927,BB\n"  # 10.0.0.0/24, 10.0.2.0/24
GEOIP6 = "2001:db8::,2001:db8::ffff,CC\n"


def some_relays() -> list[RelayDoc]:
    """Six relays; three are one family's, of whom one names another that does not name it back."""
    docs = [
        RelayDoc("Alpha", bytes([1]) * 20, "10.0.0.1", flags=EXIT, bandwidth=100, policy="accept 80,443"),
        RelayDoc("beta", bytes([2]) * 20, "10.0.1.2", flags=GUARD, bandwidth=700, ipv6="[2001:db8::2]:9001"),
        RelayDoc("gamma", bytes([3]) * 20, "10.0.2.3", flags=GUARD, bandwidth=50),
        RelayDoc("delta", bytes([4]) * 20, "9.0.0.4", flags=PLAIN, bandwidth=900, protocols="Relay=1-4"),
        RelayDoc("twin", bytes([5]) * 20, "10.0.0.5", flags=PLAIN, policy6="accept 6667"),
        RelayDoc("twin", bytes([0xEE]) * 20, "10.0.0.6", flags=EXIT, policy="reject 80", or_port=443),
    ]
    alpha, beta, gamma, delta = docs[:4]
    alpha.family = f"${beta.fingerprint} ${gamma.fingerprint} ${delta.fingerprint} ${'AB' * 20}"
    beta.family = f"${alpha.fingerprint}"
    gamma.family = "alpha"
    return docs


@dataclass(frozen=True)
class Shelf:
    """A directory with what the commands take: call it to run one."""

    path: Path
    capture: pytest.CaptureFixture[bytes]

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Exit status, stdout and stderr of a command line."""
        paths = ["--network", f"{self.path}/network.toml", "--data-dir", f"{self.path}/data"]
        status = run_command_line([*paths, *arguments])
        out, err = self.capture.readouterr()
        return status, out.decode(), err.decode()

    def source(self, flavor: str = "microdesc") -> list[str]:
        """The options for the consensus in a file."""
        return ["--from", f"{self.path}/{flavor}", "--certs", f"{self.path}/certs", "--at", NOW]

    @property
    def geoip(self) -> list[str]:
        return ["--geoip", f"{self.path}/geoip"]

    @property
    def geoip6(self) -> list[str]:
        return ["--geoip6", f"{self.path}/geoip6"]

    def fill_cache(self, docs: list[RelayDoc]) -> list[str]:
        """Put a consensus, and the microdescriptors of `docs`, into the cache; the options for it."""
        data = self.path / "data"
        data.mkdir(exist_ok=True)
        (data / "consensus-microdesc").write_bytes((self.path / "microdesc").read_bytes())
        (data / "certificates").write_bytes((self.path / "certs").read_bytes())
        (data / "microdescs").write_bytes(b"@last-listed 2027-01-15 08:00:00\n" + encode_microdescs(docs))
        return ["--from", "cache", "--at", NOW]
