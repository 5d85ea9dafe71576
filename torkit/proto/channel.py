"""The link handshake with a relay, from the first cell after TLS to a channel that can carry circuits.

A client sends two cells and awaits three (tor-spec, "Negotiating and initializing connections"):

    us                          relay
    VERSIONS ------------------>
             <------------------ VERSIONS          link protocol agreed; circuit ids are 4 bytes from here
             <------------------ CERTS             who the relay is, checked at once
    NETINFO  ------------------>                   sent only to the relay we meant
             <------------------ AUTH_CHALLENGE    ignored: a client has no identity to show
             <------------------ NETINFO           its clock, our address: the channel is open

Rules, from which `_AFTER` is drawn:

  - each of the relay's cells comes once, and after those it depends on;
  - before VERSIONS only VPADDING and AUTHORIZE may come; afterwards padding and commands we do not know
    are passed over; any other cell that belongs to no handshake ends the channel;
  - nothing but VERSIONS is sent before the certificates are checked and both identities are as expected.
"""

from typing import NamedTuple

from torkit._fast.cells import Command
from torkit.errors import ChannelError, UsageError
from torkit.proto.cells import (
    IPAddress,
    decode_certs,
    decode_netinfo,
    decode_versions,
    encode_netinfo,
    encode_versions,
)
from torkit.proto.certs import RelayIdentity, verify_certs

# The versions that C tor offers: our VERSIONS shall look like the larger crowd's ("SHOULD list at least
# version 3"), and refuse 3 if it comes to that: the core speaks only 4-byte circuit ids, and no relay
# that meets the network's required protocols (Link=4-5) would choose it.
LINK_PROTOCOLS_OFFERED = (3, 4, 5)
LINK_PROTOCOLS_SPOKEN = (4, 5)

# Which cell must have come before each of the relay's.
_AFTER = {
    Command.VERSIONS: None,
    Command.CERTS: Command.VERSIONS,
    Command.AUTH_CHALLENGE: Command.CERTS,
    Command.NETINFO: Command.CERTS,
}
_ALLOWED_BEFORE_VERSIONS = {Command.VPADDING, Command.AUTHORIZE}
_PASSED_OVER = {Command.PADDING, Command.VPADDING, Command.AUTHORIZE}
_KNOWN = frozenset(Command)

Cells = list[tuple[Command, bytes]]


class LinkResult(NamedTuple):
    """What is known of a channel once it is open.

    `clock_skew` is the relay's clock minus ours, in seconds, or None if it told no time. It and
    `our_address`, how the relay saw us, are only as good as the relay.
    """

    link_protocol: int
    peer: RelayIdentity
    clock_skew: float | None
    our_address: IPAddress | None


class LinkHandshake:
    """The client's side of the handshake on one connection.

    Driven by the cells received: `start` once, then `receive` for each cell until `result` is not
    None. Both return cells to send, as (command, body), with circuit id 0. A ChannelError leaves
    nothing to do but close the connection.
    """

    def __init__(
        self,
        *,
        expected_rsa: bytes,
        expected_ed25519: bytes | None,
        peer_address: IPAddress,
        tls_certificate_digest: bytes,
        now: float,
    ) -> None:
        """`expected_rsa` is 20 bytes, `expected_ed25519` 32.

        `expected_ed25519` is None only where the relay is known by its RSA identity alone (a built-in
        authority). `tls_certificate_digest` is the SHA-256 of the DER certificate the relay showed in
        TLS, 32 bytes. `now` is in seconds since the epoch.
        """
        self.result: LinkResult | None = None
        self.link_protocol: int | None = None
        self._expected_rsa = expected_rsa
        self._expected_ed25519 = expected_ed25519
        self._peer_address = peer_address
        self._tls_certificate_digest = tls_certificate_digest
        self._now = now
        self._seen: set[int] = set()
        self._peer: RelayIdentity | None = None

    def start(self) -> Cells:
        return [(Command.VERSIONS, encode_versions(LINK_PROTOCOLS_OFFERED))]

    def receive(self, command: int, body: bytes) -> Cells:
        """Take one cell of the relay's. Raises ChannelError if it breaks a rule, or proves a stranger."""
        if self.result is not None:
            raise UsageError("the link handshake is over; this cell belongs to the channel")
        if not self._is_for_handshake(command):
            return []
        self._seen.add(command)
        match command:
            case Command.VERSIONS:
                self.link_protocol = _choose_link_protocol(decode_versions(body))
            case Command.CERTS:
                self._peer = self._authenticate(body)
                return [(Command.NETINFO, encode_netinfo(self._peer_address))]
            case Command.NETINFO:
                self._open(body)
        return []

    def _is_for_handshake(self, command: int) -> bool:
        """Returns False for a cell to pass over. Raises ChannelError for a cell that must not come now."""
        if command in _AFTER:
            before = _AFTER[Command(command)]
            # The specification has later VERSIONS cells ignored. No relay sends one; a peer that does is
            # up to something.
            if command in self._seen:
                raise ChannelError(f"{_name(command)} came twice in the link handshake")
            if before is not None and before not in self._seen:
                raise ChannelError(f"{_name(command)} came before {before.name}")
            return True
        if Command.VERSIONS not in self._seen and command not in _ALLOWED_BEFORE_VERSIONS:
            raise ChannelError(f"{_name(command)} came before VERSIONS")
        if command in _KNOWN and command not in _PASSED_OVER:
            raise ChannelError(f"{_name(command)} came during the link handshake")
        return False

    def _authenticate(self, certs_body: bytes) -> RelayIdentity:
        peer = verify_certs(
            decode_certs(certs_body), tls_certificate_digest=self._tls_certificate_digest, now=self._now
        )
        if peer.rsa != self._expected_rsa:
            raise ChannelError(
                f"the relay has RSA identity {peer.rsa.hex()}, not {self._expected_rsa.hex()} as expected"
            )
        if self._expected_ed25519 is not None and peer.ed25519 != self._expected_ed25519:
            raise ChannelError(
                f"the relay has Ed25519 identity {peer.ed25519.hex()}, "
                f"not {self._expected_ed25519.hex()} as expected"
            )
        return peer

    def _open(self, netinfo_body: bytes) -> None:
        netinfo = decode_netinfo(netinfo_body)
        assert self.link_protocol is not None
        assert self._peer is not None
        self.result = LinkResult(
            self.link_protocol,
            self._peer,
            netinfo.timestamp - self._now if netinfo.timestamp else None,
            netinfo.our_address,
        )


def _choose_link_protocol(theirs: list[int]) -> int:
    """Returns the highest number that both sides offer, if we speak it.

    tor-spec, "Negotiating versions with VERSIONS cells".
    """
    common = set(LINK_PROTOCOLS_OFFERED).intersection(theirs)
    if not common.intersection(LINK_PROTOCOLS_SPOKEN):
        raise ChannelError(
            f"no link protocol in common: {LINK_PROTOCOLS_SPOKEN} expected, {sorted(set(theirs))[:10]} seen"
        )
    return max(common)


def _name(command: int) -> str:
    return Command(command).name if command in _KNOWN else f"command {command}"
