"""Where to: hosts and ports as people write them, and what they may have meant. Looks no name up."""

from ipaddress import IPv6Address, ip_address

from torkit.errors import UsageError

# Ports that people name instead of writing the number, for hints only.
PORTS = {
    "ftp": 21,
    "ssh": 22,
    "telnet": 23,
    "smtp": 25,
    "http": 80,
    "ws": 80,
    "pop3": 110,
    "imap": 143,
    "https": 443,
    "wss": 443,
    "imaps": 993,
    "irc": 6667,
    "ircs": 6697,
}


def parse_target(target: str, port: str | None = None) -> tuple[str, int]:
    """`host:port`, `[v6]:port`, or a host and a port apart. Raises UsageError."""
    if "://" in target:
        raise UsageError(f"{target!r} is a URL, not a host and a port", hint=_hint_for_url(target))
    host = target
    if port is None:
        host, colon, port = target.rpartition(":")
        if not colon:
            raise UsageError(f"no port in {target!r}", hint="write host:port, or host and port apart")
        if ":" in host and not host.startswith("["):
            raise UsageError(
                f"{target!r} may be an address with or without a port",
                hint="write [address]:port, or address and port apart",
            )
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65_535):
        known = PORTS.get(port.lower())
        hint = f"{port} is port {known}" if known else "a port is a number from 1 to 65535"
        raise UsageError(f"{port!r} is not a port", hint=hint)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not host:
        raise UsageError(f"no host in {target!r}")
    return host, int(port)


def parse_local(option: str, text: str, hint: str) -> tuple[str, int]:
    """Returns the IP address and port that `option` names. A port alone, and localhost, mean 127.0.0.1.

    Raises UsageError, with `hint`.
    """
    if text.isascii() and text.isdigit():
        text = f"127.0.0.1:{text}"
    try:
        host, port = parse_target(text)
        if host.lower() == "localhost":
            return "127.0.0.1", port
        ip_address(host)
    except UsageError as error:
        raise UsageError(f"{option}: {error}", hint=hint) from None
    except ValueError:
        raise UsageError(f"{option}: {host!r} is not an address", hint=hint) from None
    return host, port


def _hint_for_url(url: str) -> str:
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        port = str(parts.port or PORTS.get(parts.scheme) or "PORT")
    except ValueError:
        return "write host:port"
    host = parts.hostname or "HOST"
    return f"write [{host}]:{port}" if ":" in host else f"write {host}:{port}"


def format_address(host: str, port: int) -> str:
    """The text that `parse_target` reads."""
    try:
        is_ipv6 = isinstance(ip_address(host), IPv6Address)
    except ValueError:
        is_ipv6 = False
    return f"[{host}]:{port}" if is_ipv6 else f"{host}:{port}"
