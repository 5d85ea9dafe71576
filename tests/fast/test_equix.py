"""HashX and Equi-X, compiled and interpreted, against the oracle in plain Python (equix_reference.py)."""

import hashlib
import os
import platform
import struct
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import equix_reference as reference
import pytest

from torkit._fast.equix import SOLUTION_LEN, HashX, Solver, verify
from torkit.errors import UsageError

# The generator stalls for each. Found by trying; C tor 0.4.9.11 has no program for them either.
WITHOUT_PROGRAM = [b"seed %d" % number for number in (9308, 60748, 75571, 137342, 155588)]

both_ways = pytest.mark.parametrize("portable", [False, True], ids=["compiled", "interpreted"])
if_compiled = pytest.mark.skipif(not HashX().is_compiled, reason="nothing is compiled on this machine")


def encoded(code: list[reference.Instruction]) -> bytes:
    return b"".join(
        struct.pack("=BBBxI", reference.NUMBERS.index(one.name), one.dst or 0, one.src or 0, one.constant)
        for one in code
    )


# --- Programs and hashes -------------------------------------------------------------------------------


@pytest.mark.parametrize("part", range(4))
def test_programs_and_hashes_are_the_oracles(part: int) -> None:
    compiled, interpreted = HashX(), HashX(portable=True)
    for number in range(part, 200, 4):
        seed = hashlib.shake_128(b"%d" % number).digest(number)  # of every length from 0 on
        theirs = reference.HashX(seed)
        assert theirs.code is not None
        for ours in (compiled, interpreted):
            assert ours.make(seed)
            assert ours.program_bytes == encoded(theirs.code)
            for hashed in (0, 1, number, 0xFFFF, 2**64 - 1):
                assert ours.hash(hashed) == theirs.hash(hashed)


def test_compiled_programs_do_what_interpreted_ones_do() -> None:
    compiled, interpreted = HashX(), HashX(portable=True)
    for number in range(2000):
        assert compiled.make(b"%d" % number) == interpreted.make(b"%d" % number)
        for hashed in range(number, number + 20):  # half of these take a branch
            assert compiled.hash(hashed) == interpreted.hash(hashed)


@both_ways
@pytest.mark.parametrize("seed", WITHOUT_PROGRAM)
def test_a_seed_that_gives_no_program_is_told(seed: bytes, portable: bool) -> None:
    assert reference.HashX(seed).code is None
    function = HashX(portable=portable)
    assert not function.make(seed)
    with pytest.raises(UsageError):
        function.hash(0)
    assert Solver(portable=portable).solve(seed) is None
    assert not verify(seed, bytes(SOLUTION_LEN))


@both_ways
def test_a_seed_without_a_program_leaves_none_of_the_last(portable: bool) -> None:
    function = HashX(portable=portable)
    assert function.make(b"seed 1")
    assert not function.make(WITHOUT_PROGRAM[0])
    with pytest.raises(UsageError):
        function.hash(0)
    assert function.make(b"seed 1")
    assert function.hash(7) == reference.HashX(b"seed 1").hash(7)


# --- Where there may be code --------------------------------------------------------------------------


def test_programs_are_compiled_on_the_machines_that_we_know() -> None:
    assert HashX().is_compiled == Solver().is_compiled == (platform.machine() in ("x86_64", "aarch64"))
    assert not HashX(portable=True).is_compiled
    assert not Solver(portable=True).is_compiled


def mappings() -> list[str]:
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if "x" in line.split()[1]]


@if_compiled
def test_no_page_is_writable_and_executable_and_none_is_left() -> None:
    before = mappings()
    function = HashX()
    for number in range(3):
        assert len(mappings()) == len(before) + 1
        assert not [line for line in mappings() if "wx" in line.split()[1]]
        assert function.make(b"%d" % number)
    del function
    assert mappings() == before


REFUSED = """
from torkit._fast.equix import HashX
ours, interpreted = HashX(), HashX(portable=True)
for number in range(3):
    assert ours.make(b"%d" % number) and interpreted.make(b"%d" % number)
    assert ours.hash(number) == interpreted.hash(number)
print(ours.is_compiled)
"""


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("mprotect") / "refusing_mprotect.so"
    source = Path(__file__).parent / "refusing_mprotect.c"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-Wall", "-Werror", "-o", library, source], check=True)
    return library


@if_compiled
@pytest.mark.parametrize("call", range(1, 9))
def test_where_the_system_refuses_executable_pages_programs_are_interpreted(
    refusing: Path, call: int
) -> None:
    """One call at the beginning, two for each program; the eighth is never made."""
    preloaded = f"{os.environ.get('LD_PRELOAD', '')} {refusing}"  # behind a sanitizer's
    environment = os.environ | {"LD_PRELOAD": preloaded, "REFUSE_FROM": str(call)}
    ended = subprocess.run(
        [sys.executable, "-c", REFUSED], env=environment, capture_output=True, text=True, check=True
    )
    assert ended.stdout == f"{call == 8}\n"


# --- Solutions -----------------------------------------------------------------------------------------


def test_the_solver_finds_every_solution_and_no_other() -> None:
    function, challenge = HashX(), b"every one"
    assert function.make(challenge)
    found = Solver().solve(challenge)
    assert found
    assert Solver(portable=True).solve(challenge) == found
    expected = reference.solve([function.hash(number) for number in range(2**16)])
    assert sorted(struct.unpack("<8H", solution) for solution in found) == sorted(expected)


def test_solutions_verify_and_fail_with_any_bit_flipped() -> None:
    solver, count = Solver(), 0
    for number in range(20):
        challenge = b"bits %d" % number
        for solution in solver.solve(challenge) or []:
            count += 1
            assert verify(challenge, solution)
            assert reference.verify(challenge, list(struct.unpack("<8H", solution)))
            assert not verify(challenge + b"x", solution)
            for bit in range(8 * SOLUTION_LEN):
                flipped = int.from_bytes(solution, "little") ^ 1 << bit
                assert not verify(challenge, flipped.to_bytes(SOLUTION_LEN, "little"))
    assert count > 20


def test_the_tree_has_one_order() -> None:
    """Halves that change places in any node keep every sum, and make another solution of the same numbers."""
    challenge = b"order"
    (solution, *_) = Solver().solve(challenge) or []
    for width in (2, 4, 8):
        for at in range(0, SOLUTION_LEN, 2 * width):
            left, right = solution[at : at + width], solution[at + width : at + 2 * width]
            exchanged = solution[:at] + right + left + solution[at + 2 * width :]
            assert not verify(challenge, exchanged)
            assert not reference.verify(challenge, list(struct.unpack("<8H", exchanged)))


@pytest.mark.parametrize("length", [0, 15, 17])
def test_a_solution_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(UsageError, match=f"16 bytes, not {length}"):
        verify(b"challenge", bytes(length))


# --- Threads -------------------------------------------------------------------------------------------


def solving(solver: Solver) -> threading.Thread:
    """A thread in which the solver is at work until it is cancelled."""

    def solve_for_ever() -> None:
        while not solver.is_cancelled:
            with suppress(UsageError):
                solver.solve(b"challenge")

    thread = threading.Thread(target=solve_for_ever)
    thread.start()
    return thread


def test_a_solver_that_is_cancelled_stops_and_solves_no_more() -> None:
    solver = Solver()
    thread = solving(solver)
    solver.cancel()
    thread.join(30)
    assert not thread.is_alive()
    assert solver.solve(b"bits 1") == []


def test_a_solver_solves_for_one_thread_at_a_time() -> None:
    solver = Solver()
    thread = solving(solver)
    deadline = time.monotonic() + 60
    refused = None
    while refused is None and time.monotonic() < deadline:
        try:
            solver.solve(WITHOUT_PROGRAM[0])  # takes no time where it is not refused
        except UsageError as error:
            refused = error
    solver.cancel()
    thread.join(30)
    assert "another thread" in str(refused)
