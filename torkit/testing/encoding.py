"""How keys, times and objects stand in documents. dir-spec, "Document meta-format"."""

import time
from base64 import b64encode


def armor(label: str, data: bytes) -> str:
    """An object: base64 in lines of 64 between BEGIN and END."""
    text = b64encode(data).decode()
    lines = (text[at : at + 64] + "\n" for at in range(0, len(text), 64))
    return f"-----BEGIN {label}-----\n{''.join(lines)}-----END {label}-----\n"


def bare64(data: bytes) -> str:
    """Base64 without its equals signs."""
    return b64encode(data).decode().rstrip("=")


def encode_time(moment: float) -> str:
    """A time as documents have it, "YYYY-MM-DD HH:MM:SS", from Unix time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(moment))
