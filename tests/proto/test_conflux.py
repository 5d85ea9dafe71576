"""LINK's bytes, which LINKED is believed, and how many sets are kept ready."""

import struct
from functools import partial

import pytest

from torkit.errors import CircuitError
from torkit.params import parameter
from torkit.proto.conflux import Wish, encode_link, judge_linked, prebuilt_count

NONCE = bytes(range(32))


def linked(version: int = 1, nonce: bytes = NONCE, sent: int = 0, received: int = 0, wish: int = 1) -> bytes:
    return struct.pack(">B32sQQB", version, nonce, sent, received, wish)


def test_link_is_what_c_tors_client_sends_for_a_new_set() -> None:
    assert encode_link(NONCE) == b"\1" + NONCE + bytes(16) + b"\3"


def test_an_exit_says_how_it_wants_to_be_sent_to() -> None:
    assert judge_linked(linked(), NONCE) is Wish.MIN_LATENCY
    assert judge_linked(linked(wish=3) + bytes(448), NONCE) is Wish.HIGH_THROUGHPUT
    assert [wish.fills for wish in Wish] == [True, False, False, True, False]


@pytest.mark.parametrize(
    "body",
    [
        linked(version=0),
        linked(version=2),
        linked(nonce=NONCE[:31] + b"x"),
        linked(nonce=b"x" + NONCE[1:]),
        linked(sent=1),
        linked(received=1 << 63),
        linked(wish=5),
        linked()[:-1],
        b"",
    ],
)
def test_any_other_linked_is_refused(body: bytes) -> None:
    with pytest.raises(CircuitError, match="CONFLUX_LINKED"):
        judge_linked(body, NONCE)


@pytest.mark.parametrize(
    ("params", "share", "count"),
    [
        ({}, 1.0, 3),
        ({}, 0.6, 3),
        ({}, 0.59, 1),
        ({"cfx_low_exit_threshold": 5000}, 0.59, 3),
        ({}, 0.0, 0),
        ({"cfx_enabled": 0}, 1.0, 0),
        ({"cfx_max_prebuilt_set": 0}, 0.1, 0),
        ({"cfx_max_prebuilt_set": 7}, 1.0, 7),
    ],
)
def test_how_many_sets_are_kept_ready(params: dict[str, int], share: float, count: int) -> None:
    assert prebuilt_count(partial(parameter, params), share) == count
