"""What an onion service offers, as an operator writes it: ports, what is behind them, limits."""

import os
from ipaddress import ip_address
from typing import TYPE_CHECKING

from torkit.errors import UsageError
from torkit.targets import parse_target

if TYPE_CHECKING:
    from torkit.hs.service_messages import DosLimits
    from torkit.net.hosting.forward import Target

HOW_TO_NAME = "write it like 80:127.0.0.1:8080, 80:8080, 80 alone, or 80:unix:PATH"


def parse_ports(texts: list[str]) -> "dict[int, Target]":
    """What clients may ask for, and where it leads. Raises UsageError."""
    from torkit.net.hosting.forward import Target

    targets: dict[int, Target] = {}
    for text in texts:
        number, colon, where = text.partition(":")
        port = _port(number, text)
        if port in targets:
            raise UsageError(f"port {port} is named twice")
        if not colon:
            targets[port] = Target("127.0.0.1", port)
        elif where.startswith("unix:"):
            path = where.removeprefix("unix:")
            if not path or "\0" in path or len(os.fsencode(path)) > 107:
                raise UsageError(f"{text!r}: unix: wants a path of 107 bytes at most", hint=HOW_TO_NAME)
            targets[port] = Target(path)
        else:
            targets[port] = _parse_server(where, text)
    return targets


def parse_limits(text: str) -> "DosLimits":
    """What `--intro-limit`, or a file's `intro-limit`, says. Raises UsageError."""
    from torkit.hs.service_messages import MAX_DOS_LIMIT, DosLimits

    rate, _, burst = text.partition(":")
    numbers = [
        int(part) if part.isascii() and part.isdigit() and len(part) <= 10 else -1 for part in (rate, burst)
    ]
    if not 1 <= numbers[0] <= numbers[1] <= MAX_DOS_LIMIT:
        raise UsageError(f"intro-limit takes RATE:BURST, such as 25:200, not {text!r}")
    return DosLimits(*numbers)


def _port(number: str, text: str) -> int:
    if not (number.isascii() and number.isdigit() and len(number) <= 5 and 1 <= int(number) <= 65535):
        raise UsageError(f"{text!r} begins with no port", hint=HOW_TO_NAME)
    return int(number)


def _parse_server(where: str, text: str) -> "Target":
    """An address and a port of a server. Names are not looked up: who answers is not known."""
    from torkit.net.hosting.forward import Target

    if where.isascii() and where.isdigit():
        where = f"127.0.0.1:{where}"
    try:
        host, port = parse_target(where)
        host = "127.0.0.1" if host.lower() == "localhost" else str(ip_address(host))
    except ValueError as error:
        raise UsageError(f"{text!r} leads to no address and port", hint=HOW_TO_NAME) from error
    return Target(host, _port(str(port), text))
