"""Consensus diffs: the next consensus, made from the last one and from what has changed since.

That a diff applies says only that both ends meant the same texts: what comes out is parsed and verified
like any consensus. dir-spec, "Consensus diffs" and "Limited ed diff format".
"""

import re

from torkit.directory.consensus import MAX_CONSENSUS_LEN, SIGNED_END
from torkit.directory.netdoc import check_text, line_at
from torkit.directory.steps import Steps, complete, digest
from torkit.errors import DocumentError

# Specification constants.

VERSION_LINE = b"network-status-diff-version 1"

# Implementation limits.

MAX_COMMANDS = 20_000  # in one diff; an hour of 10,000 relays takes some 5,000, and a command 1 us
STEP_COMMANDS = 1000  # done in one step, of which what they copy takes as long: 2 ms
STEP_LEN = 1 << 19  # bytes taken apart in one step: 1 ms
STEP_LINES = 1 << 14  # put together in one step: 1 ms

_HEAD = re.compile(VERSION_LINE + rb"\nhash ([0-9A-Fa-f]{64}) ([0-9A-Fa-f]{64})\n")
_COMMAND = re.compile(rb"(\d{1,9})(?:,(\d{1,9}|\$))?([acd])\n")


def signed_digest(text: bytes) -> Steps[bytes]:
    """SHA3-256, 32 bytes, of the part of a consensus that is signed.

    Names the consensus to a cache (in hexadecimal, in X-Or-Diff-From-Consensus) and in a diff. Raises
    DocumentError for a consensus without signatures.
    """
    end = text.find(SIGNED_END)
    if end < 0:
        raise DocumentError("consensus lacks directory-signature")
    return (yield from digest("sha3_256", memoryview(text)[: end + len(SIGNED_END)]))


def is_diff(answer: bytes) -> bool:
    """Returns whether a cache that was asked for a consensus, with diffs welcome, has sent a diff."""
    return answer.startswith(VERSION_LINE)


def apply_diff(base: bytes, diff: bytes) -> bytes:
    """As `apply_in_steps`, at once."""
    return complete(apply_in_steps(base, diff))


def apply_in_steps(base: bytes, diff: bytes) -> Steps[bytes]:
    """The consensus, unverified, that `diff` makes of `base`: neither longer than MAX_CONSENSUS_LEN.

    Raises DocumentError for a diff that is malformed, that is for another base or makes something else
    than it says; its line is the diff's.
    """
    check_text(base, MAX_CONSENSUS_LEN, "consensus to be changed by a diff")
    yield
    check_text(diff, MAX_CONSENSUS_LEN, "consensus diff")
    head = _HEAD.match(diff)
    if head is None:
        line = 2 if diff.startswith(VERSION_LINE + b"\n") else 1
        raise DocumentError(
            "consensus diff: version 1, then hash and two SHA3-256 digests expected", line=line
        )
    from_digest, to_digest = (bytes.fromhex(digest.decode()) for digest in head.groups())
    if (yield from signed_digest(base)) != from_digest:
        raise DocumentError("consensus diff: for another consensus than ours", line=2)
    lines = yield from _split(base)
    result = yield from _edit(lines, diff, head.end())
    if len(result) > MAX_CONSENSUS_LEN:
        raise DocumentError(
            f"consensus diff: makes {len(result)} bytes; at most {MAX_CONSENSUS_LEN} are read"
        )
    if (yield from digest("sha3_256", result)) != to_digest:
        raise DocumentError("consensus diff: makes another consensus than it says", line=2)
    return result


def _split(text: bytes) -> Steps[list[bytes]]:
    """As `text.split(b"\\n")`."""
    lines: list[bytes] = []
    at = 0
    while (end := text.find(b"\n", at + STEP_LEN) + 1) > 0:
        lines += text[at:end].split(b"\n")
        lines.pop()  # what follows the newline: nothing yet
        at = end
        yield
    return lines + text[at:].split(b"\n")


def _edit(lines: list[bytes], diff: bytes, at: int) -> Steps[bytes]:
    """`lines` after the commands from offset `at` of `diff` on, which go from the last line to the first.

    No command reaches past the one before it, so nothing is written twice and the work is linear.
    """

    def fail(reason: str) -> DocumentError:
        return DocumentError(f"consensus diff: {reason}", line=line_at(diff, at))

    last = rest = len(lines) - 1
    result = [b""]  # from the end: nothing, behind the last newline
    commands = 0
    while at < len(diff):
        command = _COMMAND.match(diff, at)
        if command is None:
            raise fail("not a command")
        action = command[3]
        start = int(command[1])
        end = start if command[2] is None else last if command[2] == b"$" else int(command[2])
        # A range has two lines at least, and only a deletion may reach to "$" (as in C tor).
        if command[2] and (end <= start or action == b"a" or (command[2] == b"$" and action != b"d")):
            raise fail("not a range")
        if end > rest or (start == 0 and action != b"a"):
            raise fail("lines out of order or past the end")
        result += lines[end:rest][::-1]
        rest = end if action == b"a" else start - 1
        if action != b"d":
            block, block_end = command.end(), diff.find(b"\n.\n", command.end() - 1)
            if block_end < block:
                raise fail("a block that is empty or has no end")
            result.append(diff[block:block_end])
            at = block_end + len(b"\n.\n")
        else:
            at = command.end()
        commands += 1
        if commands > MAX_COMMANDS:
            raise fail(f"more than {MAX_COMMANDS} commands")
        if commands % STEP_COMMANDS == 0:
            yield
    result += lines[:rest][::-1]
    result.reverse()
    yield
    pieces = []
    for first in range(0, len(result), STEP_LINES):
        pieces.append(b"\n".join(result[first : first + STEP_LINES]))
        yield
    return b"\n".join(pieces)
