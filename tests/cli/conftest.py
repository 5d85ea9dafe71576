"""For commands that need no network: documents in files."""

from pathlib import Path

import network_docs as nd
import pytest
from cli.shelf import GEOIP, GEOIP6, Shelf, some_relays


@pytest.fixture
def shelf(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> Shelf:
    signers = nd.authorities()
    for flavor in ("microdesc", "ns"):
        (tmp_path / flavor).write_bytes(nd.consensus(some_relays(), signers, flavor=flavor))
    (tmp_path / "certs").write_bytes(b"".join(one.certificate() for one in signers))
    (tmp_path / "geoip").write_text(GEOIP)
    (tmp_path / "geoip6").write_text(GEOIP6)
    lines = (
        f'"{one.nickname} orport=1 v3ident={one.v3ident.hex()} 127.0.0.1:1 {number:040X}"'
        for number, one in enumerate(signers)
    )
    (tmp_path / "network.toml").write_text(f"authorities = [{', '.join(lines)}]\n")
    return Shelf(tmp_path, capfdbinary)
