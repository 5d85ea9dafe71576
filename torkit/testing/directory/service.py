"""What a relay answers as a directory. dir-spec, "General-use HTTP URLs", "Serving and requesting diffs"."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate

from torkit.testing.directory.authority import FakeAuthority
from torkit.testing.directory.consensus import RelayDoc, make_consensus
from torkit.testing.directory.diff import base_digest, consensus_diff
from torkit.testing.directory.router import Router, signed_digest
from torkit.testing.relay import http_response

_STATUS = "/tor/status-vote/current/"


@dataclass
class DirectoryService:
    """A directory's documents: `relay.directory = service`. One service may be that of several relays.

    It answers without compression, and to what it does not have with 404. Every field may be changed at any
    time, and none is checked: that is how a directory lies about documents. What goes wrong with an answer on
    its way says `relay.answering`.
    """

    consensus: bytes = b""
    certificates: bytes = b""
    microdescs: dict[str, bytes] = field(default_factory=dict)  # by base64 digest
    diff: bytes = b""  # sent to whoever asks for one, whatever they have
    clock: float | None = None  # how much more than ours its Date header shows, in seconds
    requests: list[str] = field(default_factory=list)  # the paths, without ".z" and the wanted signers
    ns_consensus: bytes = b""
    server_descriptors: dict[str, bytes] = field(default_factory=dict)  # by fingerprint; so the next
    extra_infos: dict[str, bytes] = field(default_factory=dict)
    earlier: list[bytes] = field(default_factory=list)  # consensuses from which there are diffs

    def hold(self, docs: Sequence[RelayDoc]) -> None:
        """Serve the microdescriptors of these, and no others."""
        self.microdescs = {doc.microdesc_digest(): doc.microdesc() for doc in docs}

    def hold_routers(self, routers: Iterable[Router]) -> None:
        """Serve the server descriptors and extra-info documents of these, and no others."""
        routers = list(routers)
        self.server_descriptors = {one.fingerprint: one.descriptor() for one in routers}
        self.extra_infos = {one.fingerprint: one.extra_info() for one in routers}

    def renew(self, consensus: bytes) -> None:
        """Serve a newer consensus, and a diff to whoever has one that was served before."""
        self.earlier.append(self.consensus)
        self.consensus = consensus

    def __call__(self, request: bytes) -> bytes:
        """A whole HTTP request to a whole answer. A request that is none is answered with 400."""
        try:
            method, target = request.split(maxsplit=2)[:2]
            path = target.decode("ascii").removesuffix(".z")
        except ValueError:
            return http_response(b"", status="400 Bad request")
        if path.startswith("/tor/status-vote/"):  # all of the authorities asked for have signed it
            path, _, _ = path.rpartition("/")
        self.requests.append(path)
        return self._answer(self._find(path, request) if method == b"GET" else b"")

    def _find(self, path: str, request: bytes) -> bytes:
        if path == _STATUS + "consensus-microdesc":
            return self._diff_for(request) or self.consensus
        if path == _STATUS + "consensus":
            return self.ns_consensus
        if path.startswith(("/tor/keys/fp/", "/tor/keys/fp-sk/")):
            return self.certificates
        if path.startswith("/tor/micro/d/"):
            wanted = path.removeprefix("/tor/micro/d/").split("-")
            return b"".join(self.microdescs.get(digest, b"") for digest in wanted)
        for prefix, texts in (
            ("/tor/server/", self.server_descriptors),
            ("/tor/extra/", self.extra_infos),
        ):
            if path.startswith(prefix):
                return _of_routers(texts, path.removeprefix(prefix))
        return b""

    def _diff_for(self, request: bytes) -> bytes:
        """dir-spec, "Serving and requesting diffs": from the first of the hashes asked with that is known."""
        _, _, headers = request.partition(b"\r\nX-Or-Diff-From-Consensus: ")
        if not headers or self.diff:
            return self.diff if headers else b""
        bases = {base_digest(one): one for one in self.earlier if one}
        asked = headers.partition(b"\r\n")[0].decode("ascii", "replace").upper().split(",")
        known = [bases[digest.strip()] for digest in asked if digest.strip() in bases]
        return consensus_diff(known[0], self.consensus) if known else b""

    def _answer(self, body: bytes) -> bytes:
        answer = http_response(body) if body else http_response(b"", status="404 Not found")
        if self.clock is None:
            return answer
        date = formatdate(time.time() + self.clock, usegmt=True)
        return answer.replace(b"\r\n", f"\r\nDate: {date}\r\n".encode(), 1)


def _of_routers(texts: dict[str, bytes], asked: str) -> bytes:
    """All of them, those with these fingerprints ("fp/") or those with these digests ("d/")."""
    if asked == "all":
        return b"".join(texts.values())
    kind, _, wanted = asked.partition("/")
    found = texts if kind == "fp" else {signed_digest(text).hex().upper(): text for text in texts.values()}
    return b"".join(found.get(name.upper(), b"") for name in wanted.split("+"))


def signed_service(
    docs: Sequence[RelayDoc],
    signers: Sequence[FakeAuthority],
    *,
    valid_after: int | None = None,
    params: str = "",
) -> DirectoryService:
    """A directory of these relays: a consensus in both flavors, certificates, microdescriptors.

    Valid from half an hour ago, or from `valid_after`, for three hours.
    """
    service = DirectoryService(make_consensus(docs, signers, valid_after=valid_after, params=params))
    service.ns_consensus = make_consensus(docs, signers, flavor="ns", valid_after=valid_after)
    service.certificates = b"".join(one.certificate() for one in signers)
    service.hold(docs)
    return service
