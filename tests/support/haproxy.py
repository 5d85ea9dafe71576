"""deploy/haproxy/haproxy.cfg at ports of our own, and whom HAProxy takes for healthy."""

import re
import urllib.request
from collections.abc import Sequence
from pathlib import Path

CONFIG = Path(__file__).parents[2] / "deploy/haproxy/haproxy.cfg"
OWN_PORTS = (3128, 1080, 8404)  # for HTTP, for SOCKS, and HAProxy's page


def configured(own: Sequence[int], proxies: Sequence[int], pages: Sequence[int]) -> str:
    """Returns the file with these ports, and without proxies beyond those given."""
    text = "".join(
        line
        for line in CONFIG.read_text().splitlines(True)
        if not (found := re.search(r"server torkit(\d)", line)) or int(found[1]) <= len(proxies)
    )
    for old, new in [
        *((rf":{old}$", f":{new}") for old, new in zip(OWN_PORTS, own, strict=True)),
        *((rf":{9151 + number}\b", f":{port}") for number, port in enumerate(proxies)),
        *((rf"port {9161 + number}$", f"port {page}") for number, page in enumerate(pages)),
    ]:
        text, count = re.subn(old, new, text, flags=re.MULTILINE)
        assert count, old
    return text


def count_healthy(page: int) -> int:
    """How many proxies HAProxy gives requests in HTTP to, by its page at this port."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{page}/;csv") as answer:
            rows = [line.split(",") for line in answer.read().decode().splitlines()]
    except OSError:
        return 0
    return sum(row[0] == "http" and row[1] != "BACKEND" and row[17] == "UP" for row in rows)
