"""The directory of a scripted network: documents that are signed, a relay that serves them, and its lies.

Plain Python over hashlib and `cryptography`, from dir-spec and cert-spec, sharing nothing with torkit.

    relays = make_chain(3)                                    scripted relays (torkit.testing.relay)
    docs = [RelayDoc.of(relay, f"relay{n}") for n, relay in enumerate(relays)]
    authorities = make_authorities(3)                         whose `v3ident`s the client has to be told
    relays[0].directory = signed_service(docs, authorities)   consensus, certificates, microdescriptors

What is wrong with a document is written into it, or into the service:

    docs[1].ntor_onion_key = bytes(32)                        before it is signed
    service.consensus = make_consensus(docs, authorities[:1]) too few have signed
    service.consensus = service.consensus.replace(b"=1000", b"=9999")    a lie of the relay's
    service.certificates = b""
    service.diff = consensus_diff(another, newer)             from what the client does not have

What goes wrong with an answer, the relay says (`answering` takes the beginning of a path):

    relay.answering("/tor/micro/").cut(500)                   ends early
    relay.answering("/tor/status-vote/", nth=2).stall()       falls silent for good, at the second request
    relay.answering("/tor/keys/").impersonate(stranger)       says what another relay's directory would
    relay.answering("/tor/").lie(lambda _: http_response(b"", status="503 Busy"))
"""

from torkit.testing.directory.authority import FakeAuthority, make_authorities
from torkit.testing.directory.consensus import (
    RelayDoc,
    encode_microdescs,
    make_consensus,
    sign_consensus,
    signed_part,
)
from torkit.testing.directory.diff import consensus_diff
from torkit.testing.directory.router import Router
from torkit.testing.directory.service import DirectoryService, signed_service

__all__ = [
    "DirectoryService",
    "FakeAuthority",
    "RelayDoc",
    "Router",
    "consensus_diff",
    "encode_microdescs",
    "make_authorities",
    "make_consensus",
    "sign_consensus",
    "signed_part",
    "signed_service",
]
