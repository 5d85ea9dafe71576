"""A scripted Tor relay for tests: the server's side of links, circuits and streams. It misbehaves on command.

Plain Python over hashlib and `cryptography`, written from the specifications and sharing nothing with
torkit but the command numbers, so that each side checks the other; CGO is the oracle's (reference.py).
Slow and obvious is right here.

    relay = FakeRelay()                       keys, certificates, and a handler for each thing that can arrive
    link = relay.link()                       one connection: the plaintext inside TLS
    link.receive(data) -> bytes               sans-IO: bytes from the client in, bytes for the client out
    async with serve_relay(relay) as (host, port): ...      the same over real TLS on loopback

A circuit is one `FakeCircuit` with all its hops in memory: EXTEND2 finds the next `FakeRelay` among those
that `make_chain` introduced to each other, and every hop keeps its own onion layer and windows. Hops count
from 1. Whatever arrives is answered by the handler of the relay it reached: `relay.on_begin`,
`relay.on_data`, ... whose default is the function `answer_begin`, ... below.

To misbehave, name a step and say what happens there (faults.py has all the verbs):

    relay.sending(Command.CREATED2).drop()                              the answer never comes
    relay.sending(RelayCommand.DATA, nth=3).duplicate()                 the third comes twice
    relay.receiving(RelayCommand.BEGIN).delay(30)                       is heard half a minute late
    relay.sending(byte=1500).close(abrupt=True)                         the connection is cut there
    relay.answering("/tor/micro/").corrupt()                            of what it says as a directory

Or replace a handler, or reach in and send something:

    relay.on_begin = ignore                                             never answers
    relay.on_begin = lambda stream: stream.end(4)                       refuses
    relay.on_sendme_due = lambda circuit, hop, tag: circuit.sendme(hop, bytes(20))      a wrong tag
    relay.edit_certs = lambda certs: certs[1:]                          a certificate short
    circuit.send(1, RelayCommand.DATA, stream.id, b"x")                 from the wrong hop
    circuit.send(3, RelayCommand.DROP, wrong_digest=True)               recognized by nobody
    link.push(cell[:100]); link.close()                                 ends in mid-cell

What a relay can do is what its `protocols` say: a whole relay (FULL) speaks ntor-v3, congestion control and
CGO with whoever asks, and WITHOUT_NTOR_V3, WITHOUT_CONGESTION_CONTROL, WITHOUT_CGO are older ones. It refuses
a handshake that asks for more. `relay.edit_extensions` answers one with something else.

What the *client* does wrong is answered as a relay would (DESTROY, closed link) and noted in
`relay.complaints`, which a test of an honest client asserts to be empty.
"""

from torkit._fast.cells import Command, RelayCommand
from torkit.testing.relay.cells import (
    CC_REQUEST,
    CC_RESPONSE,
    CELL_BODY_LEN,
    CONNECTFAILED,
    FULL,
    NTOR,
    NTOR_V3,
    RELAY_CRYPT_CGO,
    SUBPROTO_REQUEST,
    WITHOUT_CGO,
    WITHOUT_CONGESTION_CONTROL,
    WITHOUT_NTOR_V3,
    HandshakeRefusedError,
    RelayCell,
    encode_cell,
    encode_versions,
    ignore,
)
from torkit.testing.relay.certificates import encode_certs, make_ed_certificate
from torkit.testing.relay.circuit import (
    FakeCircuit,
    FakeHop,
    FakeStream,
    answer_begin,
    answer_begin_dir,
    answer_resolve,
    http_response,
)
from torkit.testing.relay.faults import Fault
from torkit.testing.relay.handshakes import (
    answer_handshake_ntor,
    answer_handshake_ntor_v3,
    decode_extensions,
    encode_extensions,
    kdf_rfc5869,
    kdf_tor,
)
from torkit.testing.relay.layers import CgoLayer, OnionServiceLayer, Tor1Layer, aes_ctr
from torkit.testing.relay.link import FakeLink, answer_versions, encode_netinfo
from torkit.testing.relay.relay import (
    Agreement,
    FakeRelay,
    answer_create,
    answer_extend2,
    decode_extend2,
    fresh,
    make_chain,
)
from torkit.testing.relay.state import RelayState
from torkit.testing.relay.tls import WatchedStream, serve_relay

__all__ = [
    "CC_REQUEST",
    "CC_RESPONSE",
    "CELL_BODY_LEN",
    "CONNECTFAILED",
    "FULL",
    "NTOR",
    "NTOR_V3",
    "RELAY_CRYPT_CGO",
    "SUBPROTO_REQUEST",
    "WITHOUT_CGO",
    "WITHOUT_CONGESTION_CONTROL",
    "WITHOUT_NTOR_V3",
    "Agreement",
    "CgoLayer",
    "Command",
    "FakeCircuit",
    "FakeHop",
    "FakeLink",
    "FakeRelay",
    "FakeStream",
    "Fault",
    "HandshakeRefusedError",
    "OnionServiceLayer",
    "RelayCell",
    "RelayCommand",
    "RelayState",
    "Tor1Layer",
    "WatchedStream",
    "aes_ctr",
    "answer_begin",
    "answer_begin_dir",
    "answer_create",
    "answer_extend2",
    "answer_handshake_ntor",
    "answer_handshake_ntor_v3",
    "answer_resolve",
    "answer_versions",
    "decode_extend2",
    "decode_extensions",
    "encode_cell",
    "encode_certs",
    "encode_extensions",
    "encode_netinfo",
    "encode_versions",
    "fresh",
    "http_response",
    "ignore",
    "kdf_rfc5869",
    "kdf_tor",
    "make_chain",
    "make_ed_certificate",
    "serve_relay",
]
