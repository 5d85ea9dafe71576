"""The proxy: from a local program's connection to a stream.

    server.py     serves until cancelled
    listener.py   accepts clients; each listener makes one front door for each client
    doors.py      what a front door is: the protocol that a client speaks (proto/socks.py, proto/http.py)
    transparent.py    the front door of connections that the kernel has redirected
    dns.py        answers questions for names
    client.py     one client: its request, then its carrier or its answer, then its farewell
    forward.py    carries one HTTP request and its answer
    relay.py      carries bytes both ways, where the stream is another proxy's
    carrier.py    carries bytes both ways; sockdiag.py tells whether the client is gone
    farewell.py   delivers what has arrived, then the end or a reset
    shared.py     what the clients of one proxy share:
        limits.py     how many there may be, and who has to leave
        deadlines.py  how long each may take
        isolation.py  which requests may share a circuit
        leaks.py      who may have asked a resolver outside Tor
        upstream.py   who opens streams and looks up names
        journal.py    what is logged of requests, and what is warned of

Clients come in crowds, and a task costs as much as everything else that a client needs. So the pump calls
here when a client has sent something, and a stream is begun at once where a circuit is ready. A client gets a
task only if it has to wait: for a circuit, another try, a look-up.

Destinations are never logged.
"""

from torkit.net.proxy.isolation import ISOLATION, NEVER, Isolate, Isolation, Rotate
from torkit.net.proxy.server import serve_proxy, serve_socks
from torkit.net.proxy.upstream import Answer, Ask, Requested, Resolve

__all__ = [
    "ISOLATION",
    "NEVER",
    "Answer",
    "Ask",
    "Isolate",
    "Isolation",
    "Requested",
    "Resolve",
    "Rotate",
    "serve_proxy",
    "serve_socks",
]
