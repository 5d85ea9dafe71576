"""Proof of work: C tor's vectors (vectors/hs.json), the rules of effort, and the search for a proof."""

import hashlib
import threading
from typing import Any

import pytest
from hs.making import VECTORS

from torkit._fast.equix import HashX, Solver, verify
from torkit.errors import UsageError
from torkit.hs.descriptor import ProofOfWork
from torkit.hs.pow import (
    CHALLENGE_LEN,
    MAX_EFFORT,
    MAX_EFFORT_INTERPRETED,
    PROOF_LEN,
    Proof,
    Search,
    choose_effort,
    encode_proof,
    is_expired,
    is_valid,
    make_challenge,
    max_effort,
    meets_effort,
)

BLINDED, SEED, NONCE = b"b" * 32, b"seed" * 8, b"n" * 16
PARAMS = ProofOfWork(SEED, 0, 1_000)
WITHOUT_PROGRAM = (21185).to_bytes(16, "little")  # the first nonce that gives none with these and effort 1

# That a proof has been seen before is for the service to remember; the same proof is valid once before it.
OF_ONE_PROOF = [
    vector for vector in VECTORS["proof_of_work"]["vectors"] if vector["what"] != "Reject replays"
]


def of(vector: dict[str, Any], name: str) -> bytes:
    return bytes.fromhex(vector[name])


@pytest.mark.parametrize("vector", OF_ONE_PROOF, ids=lambda vector: vector["what"])
def test_proofs_are_judged_and_encoded_as_by_c_tor(vector: dict[str, Any]) -> None:
    seed = of(vector, "seed")
    proof = Proof(of(vector, "nonce"), vector["claimed_effort"], seed[:4], of(vector, "solution"))
    assert is_valid(proof, blinded=of(vector, "blinded_id"), seed=seed) == vector["is_valid"]
    assert encode_proof(proof) == of(vector, "extension")
    assert len(encode_proof(proof)) == PROOF_LEN == 41


def test_a_challenge_is_laid_out_as_specified() -> None:
    challenge = make_challenge(BLINDED, SEED, NONCE, 0x01020304)
    assert challenge == b"Tor hs intro v1\0" + BLINDED + SEED + NONCE + b"\1\2\3\4"
    assert len(challenge) == CHALLENGE_LEN == 100


@pytest.mark.parametrize(
    ("blinded", "seed", "nonce"),
    [
        (BLINDED[1:], SEED, NONCE),
        (BLINDED, SEED + b"x", NONCE),
        (BLINDED, SEED, b""),
        (BLINDED[1:], SEED, NONCE + b"x"),
        (BLINDED[1:], SEED + b"x", NONCE),
    ],
)
def test_a_part_of_a_wrong_length_is_refused(blinded: bytes, seed: bytes, nonce: bytes) -> None:
    with pytest.raises(UsageError):
        make_challenge(blinded, seed, nonce, 1)


# --- Effort --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suggested", "failures", "effort"),
    [
        (0, 0, 0),  # no proof at all
        (1, 0, 1),
        (10_000, 0, 10_000),
        (2**32 - 1, 0, 10_000),
        (0, 1, 8),
        (3, 1, 8),
        (5, 1, 10),
        (999, 1, 1_998),
        (1_000, 1, 1_500),
        (1_001, 1, 1_501),
        (1_001, 2, 2_251),
        (0, 9, 1_536),  # 8, 16, ... 1024, then by half
        (6_667, 1, 10_000),
        (10_000, 5, 10_000),
        (1, 1_000_000, 10_000),
    ],
)
def test_effort_is_c_tors(suggested: int, failures: int, effort: int) -> None:
    assert choose_effort(suggested, failures=failures, maximum=MAX_EFFORT) == effort <= MAX_EFFORT


@pytest.mark.parametrize(
    ("maximum", "failures", "effort"),
    [(0, 0, 0), (0, 3, 0), (5, 1, 5), (50, 0, 20), (50, 1, 40), (50, 2, 50)],
)
def test_effort_stays_within_its_limit(maximum: int, failures: int, effort: int) -> None:
    assert choose_effort(20, failures=failures, maximum=maximum) == effort


@pytest.mark.parametrize("number", range(20))
def test_the_result_times_the_effort_fits_32_bits(number: int) -> None:
    solution = b"%d" % number
    result = int.from_bytes(hashlib.blake2b(b"challenge" + solution, digest_size=4).digest(), "big")
    most = (2**32 - 1) // result
    assert meets_effort(b"challenge", solution, 0)
    assert meets_effort(b"challenge", solution, most)
    assert not meets_effort(b"challenge", solution, most + 1)


def test_where_nothing_is_compiled_less_is_done() -> None:
    assert max_effort() == (MAX_EFFORT if HashX().is_compiled else MAX_EFFORT_INTERPRETED)


def test_parameters_expire() -> None:
    assert not is_expired(PARAMS, 999.5)
    assert not is_expired(PARAMS, 1_000)
    assert is_expired(PARAMS, 1_000.5)


# --- The search ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("effort", [0, 1, 4])
def test_a_search_finds_a_proof_that_the_service_takes(effort: int) -> None:
    proof = Search(PARAMS, blinded=BLINDED, effort=effort, nonce=NONCE).run()
    assert proof is not None
    assert proof.effort == effort
    assert is_valid(proof, blinded=BLINDED, seed=SEED)
    assert not is_valid(proof, blinded=SEED, seed=SEED)
    assert not is_valid(proof, blinded=BLINDED, seed=BLINDED)
    assert not is_valid(proof._replace(effort=effort + 1), blinded=BLINDED, seed=SEED)
    assert not is_valid(proof._replace(seed_head=b"head"), blinded=BLINDED, seed=SEED)


def test_a_solution_that_does_not_meet_its_effort_is_no_proof() -> None:
    """One in 2**32 - 1 does, however right the others are."""
    effort = 2**32 - 1
    for number in range(100):
        nonce = number.to_bytes(16, "little")
        challenge = make_challenge(BLINDED, SEED, nonce, effort)
        for solution in Solver().solve(challenge) or ():
            assert verify(challenge, solution)
            assert not is_valid(Proof(nonce, effort, SEED[:4], solution), blinded=BLINDED, seed=SEED)
            return
    pytest.fail("no nonce has a solution")


def test_a_search_tells_whether_it_is_compiled() -> None:
    assert Search(PARAMS, blinded=BLINDED, effort=1, nonce=NONCE).is_compiled == Solver().is_compiled


def test_nonces_are_counted_from_the_first_byte_on() -> None:
    """The first nonce of this search has no solution that meets the effort; its bytes carry."""
    start = b"\xff" * 15 + b"\x01"
    proof = Search(PARAMS, blinded=BLINDED, effort=8, nonce=start).run()
    assert proof is not None
    number = int.from_bytes(proof.nonce, "little") - int.from_bytes(start, "little")
    assert 0 < number < 100


def test_after_the_last_nonce_comes_the_first() -> None:
    proof = Search(PARAMS, blinded=BLINDED, effort=11, nonce=b"\xff" * 16).run()
    assert proof is not None
    assert int.from_bytes(proof.nonce, "little") < 100


def test_a_nonce_that_gives_no_program_is_passed_over() -> None:
    assert not HashX().make(make_challenge(BLINDED, SEED, WITHOUT_PROGRAM, 1))
    proof = Search(PARAMS, blinded=BLINDED, effort=1, nonce=WITHOUT_PROGRAM).run()
    assert proof is not None
    assert proof.nonce != WITHOUT_PROGRAM


def test_a_search_is_cancelled_from_another_thread() -> None:
    search = Search(PARAMS, blinded=BLINDED, effort=2**32 - 1, nonce=NONCE)
    found: list[Proof | None] = []
    thread = threading.Thread(target=lambda: found.append(search.run()))
    thread.start()
    search.cancel()
    thread.join(30)
    assert found == [None]
    assert search.run() is None


def test_a_search_that_cannot_work_is_refused_at_once() -> None:
    with pytest.raises(UsageError):
        Search(PARAMS, blinded=BLINDED, effort=1, nonce=b"short")
