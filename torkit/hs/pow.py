"""Proof of work, scheme v1, by which a service under load chooses the clients that it answers.

A proof is a solution of Equi-X (_fast/equix) for a challenge made of the service's seed and a nonce of the
client's. One solution in `effort` counts, so a client tries nonces until it has one. Proposal 327.
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

# The greatest effort that a client makes, and how it raises its effort after a failure. (As C tor.)
MAX_EFFORT = 10_000
MIN_RETRY_EFFORT = 8
DOUBLE_UNTIL = 1_000

# Implementation limit: the effort for which an interpreter takes 40 s, as machine code does for MAX_EFFORT.
MAX_EFFORT_INTERPRETED = 500


class Proof(NamedTuple):
    """A client's proof. `seed_head` tells the service which of its seeds was used."""

    nonce: bytes
    effort: int
    seed_head: bytes
    solution: bytes


def is_expired(params: ProofOfWork, now: float) -> bool:
    """Returns whether the service has changed its seed since, so that a newer descriptor is needed."""
    return params.expires < now


def max_effort() -> int:
    """Returns the greatest effort that this machine makes by default, in some 40 s."""
    return MAX_EFFORT if HashX().is_compiled else MAX_EFFORT_INTERPRETED


def choose_effort(suggested: int, *, failures: int, maximum: int) -> int:
    """Returns the effort of the next introduction, at most `maximum`; with 0 no proof is sent.

    `failures` counts introductions by this point that were not answered: each raises the effort.
    """
    effort = min(suggested, maximum)
    for _ in range(failures):
        if effort >= maximum:
            break
        effort = 2 * effort if effort < DOUBLE_UNTIL else effort * 3 // 2
        effort = min(max(effort, MIN_RETRY_EFFORT), maximum)
    return effort


def make_challenge(blinded: bytes, seed: bytes, nonce: bytes, effort: int) -> bytes:
    """Returns the puzzle, CHALLENGE_LEN bytes, for the service with this blinded key."""
    challenge = PERSONALIZATION + blinded + seed + nonce + effort.to_bytes(EFFORT_LEN, "big")
    if len(challenge) != CHALLENGE_LEN or len(nonce) != NONCE_LEN or len(seed) != KEY_LEN:
        raise UsageError(f"a key and a seed of {KEY_LEN} bytes and a nonce of {NONCE_LEN} expected")
    return challenge


def meets_effort(challenge: bytes, solution: bytes, effort: int) -> bool:
    """Returns whether a solution, valid or not, is the one in `effort` that counts."""
    digest = hashlib.blake2b(challenge + solution, digest_size=RESULT_LEN).digest()
    result = int.from_bytes(digest, "big")
    return result * effort <= MAX_RESULT


def is_valid(proof: Proof, *, blinded: bytes, seed: bytes) -> bool:
    """Returns whether the service with this blinded key accepts the proof, provided that its nonce is new."""
    challenge = make_challenge(blinded, seed, proof.nonce, proof.effort)
    return (
        proof.seed_head == seed[:SEED_HEAD_LEN]
        and meets_effort(challenge, proof.solution, proof.effort)
        and verify(challenge, proof.solution)
    )


def encode_proof(proof: Proof) -> bytes:
    """Returns the body of INTRODUCE1's extension, PROOF_LEN bytes."""
    effort = proof.effort.to_bytes(EFFORT_LEN, "big")
    return bytes([VERSION]) + proof.nonce + effort + proof.seed_head + proof.solution


class Search:
    """Looks for a proof. `run` takes seconds to minutes, in a thread of its own; any thread may `cancel`.

    The seed and the blinded key are those of the client's descriptor. The search begins at `nonce`, NONCE_LEN
    random bytes. It holds 2 MB, whatever the effort.
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
        """Have `run` return within milliseconds. A proof that was found before is still returned."""
        self._solver.cancel()

    def run(self) -> Proof | None:
        """Returns a proof, or None where the search was cancelled.

        Raises InternalError where the proof does not pass the service's own check.
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
