"""A network of nothing but ourselves: every address leads to our listeners, or to an error at once."""

import ctypes
import fcntl
import os
import socket
import struct

from torkit.namespaces.between import PROXY_PORT, Sockets

DNS_PORT = 53

# What a program takes for the addresses of its machine. Without one beside the loopback's, libc would look up
# no name (AI_ADDRCONFIG). They are the same everywhere, and so tell nobody apart.
OWN_IPV4 = "10.0.0.1"
OWN_IPV6 = "fd74:6f72:6b00:1::1"

BACKLOG = 1024  # connections that wait to be accepted

# <linux/if.h>, <linux/sockios.h>
SIOCSIFFLAGS = 0x8914
IFF_UP = 0x1

# <linux/netlink.h>, <linux/rtnetlink.h>, <linux/sock_diag.h>
NETLINK_ROUTE = 0
NETLINK_SOCK_DIAG = 4
NLM_F_REQUEST, NLM_F_ACK, NLM_F_CREATE = 0x1, 0x4, 0x400
RTM_NEWADDR, RTM_NEWROUTE = 20, 24
RT_TABLE_LOCAL = 255
RTPROT_BOOT = 3
RT_SCOPE_HOST = 254
RTN_LOCAL = 2
RTA_OIF, RTA_PREFSRC = 4, 7
IFA_ADDRESS, IFA_LOCAL = 1, 2
IFA_F_NODAD = 2
RT_SCOPE_UNIVERSE = 0
LOOPBACK_INDEX = 1  # of `lo` in every network namespace

_RULES = """
table inet torkit {{
    chain to_our_listeners {{
        type nat hook output priority -100
        udp dport {dns} redirect to :{dns}
        ip daddr {{ 127.0.0.0/8, {ipv4} }} accept
        ip6 daddr {{ ::1, {ipv6} }} accept
        {redirections}
    }}
    chain elsewhere {{
        type filter hook output priority 0
        ct state established,related accept
        ip daddr {{ 127.0.0.0/8, {ipv4} }} accept
        ip6 daddr {{ ::1, {ipv6} }} accept
        reject
    }}
}}
"""


def make_network() -> Sockets:
    """Have every connection come to the sockets returned, and all else fail.

    Raises OSError, RedirectionError.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))
    _own_every_address(socket.AF_INET, OWN_IPV4)
    redirected = [_listen(socket.AF_INET, "127.0.0.1", 0)]
    dns = [_bind(socket.AF_INET, "127.0.0.1", DNS_PORT)]
    try:
        redirected.append(_listen(socket.AF_INET6, "::1", 0))
    except OSError:
        pass  # a kernel without IPv6, where IPv6 fails by itself
    else:
        _own_every_address(socket.AF_INET6, OWN_IPV6)
        dns.append(_bind(socket.AF_INET6, "::1", DNS_PORT))
    proxy = _listen(socket.AF_INET, "127.0.0.1", PROXY_PORT)
    kernel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG)
    redirections = [
        f"meta nfproto {family} meta l4proto tcp redirect to :{sock.getsockname()[1]}"
        for family, sock in zip(("ipv4", "ipv6"), redirected, strict=False)
    ]
    rules = _RULES.format(dns=DNS_PORT, ipv4=OWN_IPV4, ipv6=OWN_IPV6, redirections="\n".join(redirections))
    add_rules(rules)
    return Sockets(proxy, kernel, redirected, dns)


def _listen(family: int, host: str, port: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.bind((host, port))
    sock.listen(BACKLOG)
    return sock


def _bind(family: int, host: str, port: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.bind((host, port))
    return sock


def _own_every_address(family: int, own: str) -> None:
    """Give this namespace the address `own`, and have it take every other for its own as well."""
    address = socket.inet_pton(family, own)
    flags = IFA_F_NODAD if family == socket.AF_INET6 else 0
    header = struct.pack("=BBBBI", family, 8 * len(address), flags, RT_SCOPE_UNIVERSE, LOOPBACK_INDEX)
    _configure(RTM_NEWADDR, header + _attribute(IFA_LOCAL, address) + _attribute(IFA_ADDRESS, address))
    header = struct.pack(
        *("=BBBBBBBBI", family, 0, 0, 0, RT_TABLE_LOCAL, RTPROT_BOOT, RT_SCOPE_HOST, RTN_LOCAL, 0)
    )
    device = struct.pack("=I", LOOPBACK_INDEX)
    _configure(RTM_NEWROUTE, header + _attribute(RTA_OIF, device) + _attribute(RTA_PREFSRC, address))


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value


def _configure(kind: int, message: bytes) -> None:
    """Send one request of rtnetlink(7), and wait for its answer."""
    flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE) as kernel:
        kernel.send(struct.pack("=IHHII", 16 + len(message), kind, flags, 1, 0) + message)
        [status] = struct.unpack_from("=i", kernel.recv(4096), 16)
    if status:
        raise OSError(-status, os.strerror(-status))


class RedirectionError(Exception):
    """Connections cannot be redirected; the message says why."""


def add_rules(rules: str) -> None:
    """Add nftables rules to this namespace. Raises RedirectionError.

    libnftables is what nft(8) itself calls. Called here it needs no right to be passed to another program.
    """
    try:
        library = ctypes.CDLL("libnftables.so.1")
    except OSError:
        raise RedirectionError("nftables is not installed") from None
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
    context = ctypes.c_void_p(library.nft_ctx_new(0))
    library.nft_ctx_buffer_error(context)
    if library.nft_run_cmd_from_buffer(context, rules.encode()) != 0:
        text = library.nft_ctx_get_error_buffer(context).decode(errors="replace")
        raise RedirectionError(f"nftables: {text.splitlines()[0] if text else 'no reason given'}")
    library.nft_ctx_free(context)
