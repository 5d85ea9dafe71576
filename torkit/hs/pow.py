"""Proof of work, scheme v1: what a service under load asks of its clients before it answers.

A proof is a solution of Equi-X (_fast/equix) for a challenge that holds the service's seed and a nonce of the
client's. One solution in `effort` meets the effort, so a client tries nonces until one does. Proposal 327.
"""

import hashlib
from typing import NamedTuple

from torkit._fast.equix import SOLUTION_LEN, HashX, Solver, verify
from torkit.errors import InternalError, UsageError
from torkit.hs.descriptor import ProofOfWork
from torkit.hs.keys import KEY_LEN

# Specification constants. hspow-spec, "Common protocol" and "v1 Equi-X".
PERSONALIZATION = b"Tor hs intro v1\0"
VERSION = 1
NONCE_LEN, SEED_HEAD_LEN, EFFORT_LEN = 16, 4, 4
CHALLENGE_LEN = len(PERSONALIZATION) + 2 * KEY_LEN + NONCE_LEN + EFFORT_LEN
PROOF_LEN = 1 + NONCE_LEN + EFFORT_LEN + SEED_HEAD_LEN + SOLUTION_LEN
RESULT_LEN, MAX_RESULT = 4, 0xFFFFFFFF  # of the hash that decides

# C tor's: what a client is ready for, and how it raises its effort after a failure.
MAX_EFFORT = 10_000
MIN_RETRY_EFFORT = 8
DOUBLE_UNTIL = 1_000

# Implementation limit: what an interpreter finds in the 40 s in which machine code finds MAX_EFFORT.
MAX_EFFORT_INTERPRETED = 500


class Proof(NamedTuple):
    """What a client shows. `seed_head` tells the service which of its seeds was used."""

    nonce: bytes
    effort: int
    seed_head: bytes
    solution: bytes


def is_expired(params: ProofOfWork, now: float) -> bool:
    """Returns whether another descriptor is to be fetched first: the service has changed its seed since."""
    return params.expires < now


def max_effort() -> int:
    """The greatest effort that this machine is ready for."""
    return MAX_EFFORT if HashX().is_compiled else MAX_EFFORT_INTERPRETED


def choose_effort(suggested: int, *, failures: int, maximum: int) -> int:
    """The effort of the next introduction, at most `maximum`; with 0 no proof is sent.

    `failures` counts the introductions by this point to which nobody answered: each was too cheap.
    """
    effort = min(suggested, maximum)
    for _ in range(failures):
        if effort >= maximum:
            break
        effort = 2 * effort if effort < DOUBLE_UNTIL else effort * 3 // 2
        effort = min(max(effort, MIN_RETRY_EFFORT), maximum)
    return effort


def make_challenge(blinded: bytes, seed: bytes, nonce: bytes, effort: int) -> bytes:
    """The puzzle, CHALLENGE_LEN bytes, for the service with this blinded key."""
    challenge = PERSONALIZATION + blinded + seed + nonce + effort.to_bytes(EFFORT_LEN, "big")
    if len(challenge) != CHALLENGE_LEN or len(nonce) != NONCE_LEN or len(seed) != KEY_LEN:
        raise UsageError(f"a key and a seed of {KEY_LEN} bytes and a nonce of {NONCE_LEN} expected")
    return challenge


def meets_effort(challenge: bytes, solution: bytes, effort: int) -> bool:
    """Returns whether a solution, right or wrong, is the one in `effort` that counts."""
    digest = hashlib.blake2b(challenge + solution, digest_size=RESULT_LEN).digest()
    result = int.from_bytes(digest, "big")
    return result * effort <= MAX_RESULT


def is_valid(proof: Proof, *, blinded: bytes, seed: bytes) -> bool:
    """Returns whether the service with this blinded key takes the proof, if its nonce is new."""
    challenge = make_challenge(blinded, seed, proof.nonce, proof.effort)
    return (
        proof.seed_head == seed[:SEED_HEAD_LEN]
        and meets_effort(challenge, proof.solution, proof.effort)
        and verify(challenge, proof.solution)
    )


def encode_proof(proof: Proof) -> bytes:
    """The body of INTRODUCE1's extension, PROOF_LEN bytes."""
    effort = proof.effort.to_bytes(EFFORT_LEN, "big")
    return bytes([VERSION]) + proof.nonce + effort + proof.seed_head + proof.solution


class Search:
    """Looks for a proof: `run` in a thread of its own, where it takes seconds to minutes; `cancel` in any.

    The seed and the blinded key are of the descriptor that the client uses. `nonce`, NONCE_LEN random bytes,
    is where the search begins. Holds 2 MB, whatever the effort.
    """

    def __init__(self, params: ProofOfWork, *, blinded: bytes, effort: int, nonce: bytes) -> None:
        make_challenge(blinded, params.seed, nonce, effort)  # refuse here, not in the thread
        self._seed = params.seed
        self._blinded = blinded
        self._effort = effort
        self._number = int.from_bytes(nonce, "little")
        self._solver = Solver()

    @property
    def is_compiled(self) -> bool:
        """Returns whether the search runs machine code, not an interpreter, which takes 20 times as long."""
        return self._solver.is_compiled

    def cancel(self) -> None:
        """Let `run` return within some milliseconds. It may have found a proof before."""
        self._solver.cancel()

    def run(self) -> Proof | None:
        """Search until there is a proof. Returns None where the search was cancelled.

        Raises InternalError where the proof, verified as the service will, is not valid.
        """
        while not self._solver.is_cancelled:
            nonce = self._number.to_bytes(NONCE_LEN, "little")
            challenge = make_challenge(self._blinded, self._seed, nonce, self._effort)
            for solution in self._solver.solve(challenge) or ():  # None: this nonce gives no program
                if meets_effort(challenge, solution, self._effort):
                    proof = Proof(nonce, self._effort, self._seed[:SEED_HEAD_LEN], solution)
                    if not is_valid(proof, blinded=self._blinded, seed=self._seed):
                        raise InternalError("the solver's solution is none")
                    return proof
            self._number = (self._number + 1) % (1 << 8 * NONCE_LEN)
        return None
