"""Which addresses a program names to the kernel, as strace sees it."""

import re
from pathlib import Path

# Every call that can name another end.
STRACE = "strace -f -qq -e trace=connect,sendto,sendmsg,sendmmsg -e signal=none -o"
PEER = re.compile(
    r"sin6?_port=htons\((\d+)\), (?:sin_addr=inet_addr|.*inet_pton\(AF_INET6,) ?\(?\"([0-9a-f.:]+)\""
)


def peers_in(trace: Path) -> set[tuple[str, int]]:
    """Every address and port in a trace of STRACE."""
    peers = set()
    for line in trace.read_text().splitlines():
        if "nlmsg_len=" in line:  # the kernel is asked about a client's connection (net/proxy/sockdiag.py)
            continue
        if "AF_INET" in line:
            found = PEER.search(line)
            assert found is not None, line
            peers.add((found[2], int(found[1])))
        # Name services of the machine are sockets of the file system.
        assert "AF_UNIX" not in line, line
    return peers
