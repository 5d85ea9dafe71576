"""Solves Equi-X, the puzzle of proof of work, and verifies solutions. (Used by hs/pow.py.)

A challenge gives a hash function, HashX, of numbers of 16 bits. A solution is eight numbers, the leaves of
a binary tree whose nodes are sums of hashes, modulo 2^64:

    the sum of two neighbours has          15 low bits zero
    the sum of two such sums               30
    the sum of all                         60

In each node the left half is not greater than the right half, both read as little-endian integers, so that
each set of eight counts once. A solution is encoded as its eight numbers, in little-endian bytes.

The solver makes the tree from its leaves, in three steps. Each groups some 2^16 values by their low STEP_BITS
bits. Pairs whose sum has zeros there become the values of the next step, without these bits.
"""

import hashlib

cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from torkit.errors import UsageError

cdef extern from "hashx.h" nogil:
    enum:
        HASHX_KEYS_LEN
        HASHX_LEN

    ctypedef struct hashx_instruction:
        pass

    ctypedef struct hashx_program:
        hashx_instruction code[HASHX_LEN]

    ctypedef void (*hashx_compiled)(uint64_t* registers) noexcept nogil

    int hashx_make(hashx_program* program, const uint8_t* keys)
    uint64_t hashx_hash(const hashx_program* program, hashx_compiled compiled, uint64_t number)

cdef extern from "hashx_compiler.h" nogil:
    ctypedef struct hashx_code:
        uint8_t* pages
        hashx_compiled compiled

    void hashx_code_init(hashx_code* code)
    void hashx_code_free(hashx_code* code)
    void hashx_compile(hashx_code* code, const hashx_program* program)

# Specification constants. Equi-X is specified by its author's description only, without section numbers.
cdef enum:
    NUMBER_COUNT = 1 << 16        # numbers that can be leaves
    SOLUTION_NUMBERS = 8
    STEP_BITS = 15                # low bits that each of the first two steps makes zero; the last makes twice as many

SOLUTION_LEN = 2 * SOLUTION_NUMBERS
HASHX_SALT = b"HashX v1"

# Implementation limits.
cdef enum:
    # 2^16 are expected, with a standard deviation of 2^8 in the first step, and more than 2^9 in the second.
    # Pairs beyond this limit are dropped, which costs a solution or two.
    MAX_PAIRS = NUMBER_COUNT + 4096
    MAX_SOLUTIONS = 16            # two are expected
    HASHES_PER_LOOK = 256         # until the solver looks again whether it is cancelled

cdef enum:
    GROUPS = 1 << STEP_BITS
    POSITION_BITS = 17            # enough for MAX_PAIRS

# An item has a value in its high bits and the value's name in these low bits: in the first step the number that
# was hashed, in the second two numbers, in the third the positions of two pairs.
cdef enum:
    FIRST_NAME_BITS = 16
    SECOND_NAME_BITS = 32
    THIRD_NAME_BITS = 2 * POSITION_BITS


cdef struct Tables:
    uint16_t keys[MAX_PAIRS]      # the low STEP_BITS bits of the next step's values
    uint64_t items[MAX_PAIRS]     # the other bits of these values, with their names
    uint64_t groups[MAX_PAIRS]    # items in the order of their keys
    uint64_t pairs[MAX_PAIRS]     # the same for the second step: positions in it are names in the third
    int starts[GROUPS + 2]        # where the items of a key begin in groups or pairs
    uint64_t solutions[MAX_SOLUTIONS][2]


@cython.final
cdef class HashX:
    """The hash function of a seed. One thread at a time may use it.

    It is compiled where machine and system allow that, and interpreted elsewhere, and with `portable`.
    """

    cdef hashx_program program
    cdef hashx_code code
    cdef bint is_made

    def __cinit__(self, *, bint portable=False):
        if not portable:
            hashx_code_init(&self.code)

    def __dealloc__(self):
        hashx_code_free(&self.code)

    @property
    def is_compiled(self):
        """Returns whether programs are compiled. That makes the same hashes 20 times as fast."""
        return self.code.pages != NULL

    def make(self, bytes seed not None):
        """Become the function of `seed`. Returns False where the seed has none: one in some 30,000."""
        cdef bytes keys = hashlib.blake2b(seed, digest_size=HASHX_KEYS_LEN, salt=HASHX_SALT).digest()
        self.is_made = hashx_make(&self.program, <const uint8_t*>keys)
        if self.is_made:
            hashx_compile(&self.code, &self.program)
        return self.is_made

    @property
    def program_bytes(self):
        """The program: for each instruction its number, dst, src, a zero, and a constant in the machine's order."""
        return (<const char*>self.program.code)[:HASHX_LEN * sizeof(hashx_instruction)]

    def hash(self, uint64_t number):
        """Returns the hash of a number. Raises UsageError before a seed has given a function."""
        if not self.is_made:
            raise UsageError("no seed has given a function yet")
        return hashx_hash(&self.program, self.code.compiled, number)


def verify(bytes challenge not None, bytes solution not None):
    """Returns whether `solution`, 16 bytes, solves the challenge. A challenge without a program has none."""
    if len(solution) != SOLUTION_LEN:
        raise UsageError(f"a solution is {SOLUTION_LEN} bytes, not {len(solution)}")
    cdef int width, at
    for width in (2, 4, 8):
        for at in range(0, SOLUTION_LEN, 2 * width):
            left, right = solution[at:at + width], solution[at + width:at + 2 * width]
            if int.from_bytes(left, "little") > int.from_bytes(right, "little"):
                return False
    cdef HashX function = HashX(portable=True)  # for eight hashes compiling would take longer
    if not function.make(challenge):
        return False
    cdef uint64_t[SOLUTION_NUMBERS] sums
    for at in range(SOLUTION_NUMBERS):
        sums[at] = function.hash(int.from_bytes(solution[2 * at:2 * at + 2], "little"))
    cdef int count = SOLUTION_NUMBERS, bits = STEP_BITS
    while count > 1:
        count //= 2
        for at in range(count):
            sums[at] = sums[2 * at] + sums[2 * at + 1]
            if sums[at] & ((<uint64_t>1 << bits) - 1):
                return False
        bits *= 2
    return True


@cython.final
cdef class Solver:
    """Solves challenges without the GIL, until another thread cancels it. Holds 2 MB."""

    cdef HashX function
    cdef Tables* tables
    cdef volatile bint cancelled
    cdef bint is_solving

    def __cinit__(self, *, bint portable=False):
        self.function = HashX(portable=portable)
        self.tables = <Tables*>malloc(sizeof(Tables))
        if self.tables == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.tables)

    @property
    def is_compiled(self):
        """Returns whether the hash function is compiled, as `HashX.is_compiled`."""
        return self.function.is_compiled

    @property
    def is_cancelled(self):
        return self.cancelled

    def cancel(self):
        """Have `solve` in another thread end within some hundred hashes, and solve nothing from now on."""
        self.cancelled = True

    def solve(self, bytes challenge not None):
        """Returns all solutions of the challenge, some two; none where the solver is cancelled.

        Returns None where the challenge gives no program. Raises UsageError while another thread is solving.
        """
        if self.is_solving:
            raise UsageError("the solver is at work in another thread")
        if not self.function.make(challenge):
            return None
        cdef int count = 0, i
        self.is_solving = True
        with nogil:
            if fill(self):
                count = find_solutions(self.tables)
        self.is_solving = False
        solutions = []
        for i in range(count):
            halves = sorted((self.tables.solutions[i][0], self.tables.solutions[i][1]))
            solutions.append(b"".join([half.to_bytes(8, "little") for half in halves]))
        return solutions


cdef bint fill(Solver solver) noexcept nogil:
    """Hash all numbers. Returns False where the solver has been cancelled."""
    cdef Tables* tables = solver.tables
    cdef int number
    cdef uint64_t value
    for number in range(NUMBER_COUNT):
        if number % HASHES_PER_LOOK == 0 and solver.cancelled:
            return False
        value = hashx_hash(&solver.function.program, solver.function.code.compiled, number)
        tables.keys[number] = value & (GROUPS - 1)
        tables.items[number] = value >> STEP_BITS << FIRST_NAME_BITS | number
    return True


cdef int find_solutions(Tables* tables) noexcept nogil:
    """Fill `solutions` from the hashes. Returns how many there are."""
    cdef int count
    group(tables, NUMBER_COUNT, tables.groups)
    count = pair(tables, tables.groups, 1)
    group(tables, count, tables.pairs)
    count = pair(tables, tables.pairs, 2)
    group(tables, count, tables.groups)
    return pair(tables, tables.groups, 3)


cdef void group(Tables* tables, int count, uint64_t* groups) noexcept nogil:
    """Sort `items` by their keys, by counting."""
    cdef int i, key
    memset(tables.starts, 0, sizeof(tables.starts))
    for i in range(count):
        tables.starts[tables.keys[i] + 2] += 1
    for key in range(2, GROUPS + 2):
        tables.starts[key] += tables.starts[key - 1]
    for i in range(count):  # starts[key + 1] moves from the start of the group of `key` to the start of the next
        key = tables.keys[i] + 1
        groups[tables.starts[key]] = tables.items[i]
        tables.starts[key] += 1


cdef int pair(Tables* tables, const uint64_t* groups, int step) noexcept nogil:
    """Find the pairs of items whose sum has STEP_BITS more zeros. Returns how many there are.

    They become the next step's items; those of the third step are solutions.
    """
    cdef int name_bits = FIRST_NAME_BITS if step == 1 else SECOND_NAME_BITS if step == 2 else THIRD_NAME_BITS
    cdef int key, other, a, b, count = 0
    cdef uint64_t total
    for key in range(GROUPS // 2 + 1):
        other = -key & (GROUPS - 1)
        for a in range(tables.starts[key], tables.starts[key + 1]):
            for b in range(a if other == key else tables.starts[other], tables.starts[other + 1]):
                total = (groups[a] >> name_bits) + (groups[b] >> name_bits)
                total += key != 0  # the carry of the low bits, which the items lack
                if step == 1:
                    tables.items[count] = total >> STEP_BITS << SECOND_NAME_BITS
                    tables.items[count] |= node(<uint16_t>groups[a], <uint16_t>groups[b], 16)
                elif step == 2:
                    tables.items[count] = total >> STEP_BITS << THIRD_NAME_BITS
                    tables.items[count] |= <uint64_t>a << POSITION_BITS | b
                elif total & (GROUPS - 1) == 0:
                    tables.solutions[count][0] = half(tables.pairs, groups[a])
                    tables.solutions[count][1] = half(tables.pairs, groups[b])
                else:
                    continue
                tables.keys[count] = total & (GROUPS - 1)
                count += 1
                if count == (MAX_SOLUTIONS if step == 3 else MAX_PAIRS):
                    return count
    return count


cdef inline uint64_t half(const uint64_t* pairs, uint64_t item) noexcept nogil:
    """Returns the four numbers of an item of the third step."""
    cdef uint64_t positions = item & ((<uint64_t>1 << THIRD_NAME_BITS) - 1)
    cdef uint64_t a = positions >> POSITION_BITS, b = positions & ((1 << POSITION_BITS) - 1)
    return node(<uint32_t>pairs[a], <uint32_t>pairs[b], 32)


cdef inline uint64_t node(uint64_t one, uint64_t other, int bits) noexcept nogil:
    """Returns two halves of `bits` bits as a solution has them: the greater in the high bits, so behind."""
    return max(one, other) << bits | min(one, other)
