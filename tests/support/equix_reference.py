"""The oracle: HashX and Equi-X as their author describes them, slow and obvious, sharing no code with torkit.

Unlike torkit's, the generator goes on after a stall, as the description has it, and judges at the end.
"""

import hashlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

MASK = 2**64 - 1
CONSTANT = 2**32 - 1  # what an instruction with a constant has for its operand, whatever the constant


def rotl(x: int, bits: int) -> int:
    return (x << bits | x >> (64 - bits)) & MASK


def sip_round(a: int, b: int, c: int, d: int) -> tuple[int, int, int, int]:
    """SipRound, in the order of the paper's figure."""
    a, c = (a + b) & MASK, (c + d) & MASK
    b, d = rotl(b, 13) ^ a, rotl(d, 16) ^ c
    a = rotl(a, 32)
    c, a = (c + b) & MASK, (a + d) & MASK
    b, d = rotl(b, 17) ^ c, rotl(d, 21) ^ a
    return a, b, rotl(c, 32), d


def keys_of(seed: bytes) -> tuple[list[int], list[int]]:
    """The keys of the generator and of the hash, four words each."""
    digest = hashlib.blake2b(seed, digest_size=64, salt=b"HashX v1").digest()
    words = [int.from_bytes(digest[at : at + 8], "little") for at in range(0, 64, 8)]
    return words[:4], words[4:]


# --- The generator -------------------------------------------------------------------------------------


class Stream:
    """Random numbers of eight or of 32 bits; each kind is cut, from the top, from words of its own."""

    def __init__(self, key: list[int]) -> None:
        self.words = self.siphash_1_3(key)
        self.bytes = self.cut(8)
        self.halves = self.cut(32)

    @staticmethod
    def siphash_1_3(key: list[int]) -> Iterator[int]:
        counter = 0
        while True:
            a, b, c, d = key
            a, b, c, d = sip_round(a, b, c, d ^ counter)
            a, b, c, d = a ^ counter, b, c ^ 0xFF, d
            for _ in range(3):
                a, b, c, d = sip_round(a, b, c, d)
            yield a ^ b ^ c ^ d
            counter += 1

    def cut(self, width: int) -> Iterator[int]:
        while True:
            word = next(self.words)
            for shift in range(64 - width, -1, -width):
                yield word >> shift & (2**width - 1)


class Kind(NamedTuple):
    """A kind of instruction. `ports` has one set for each micro-operation."""

    family: str
    ports: tuple[str, ...]
    latency: int = 1
    reads: bool = False
    constant: int = 0  # the bits that it may have


KINDS = {
    "UMULH_R": Kind("UMULH_R", ("1", "5"), latency=4, reads=True),
    "SMULH_R": Kind("SMULH_R", ("1", "5"), latency=4, reads=True),
    "MUL_R": Kind("MUL_R", ("1",), latency=3, reads=True),
    "SUB_R": Kind("ADD", ("510",), reads=True),
    "XOR_R": Kind("XOR_R", ("510",), reads=True),
    "ADD_RS": Kind("ADD", ("01",), reads=True, constant=3),
    "ROR_C": Kind("ROR_C", ("50",), constant=63),
    "ADD_C": Kind("ADD_C", ("510",), constant=2**32 - 1),
    "XOR_C": Kind("XOR_C", ("510",), constant=2**32 - 1),
    "TARGET": Kind("TARGET", ("510", "510")),
    "BRANCH": Kind("BRANCH", ("510", "510")),
}
NUMBERS = list(KINDS)
WIDE = ["SMULH_R", "UMULH_R"]
OTHERS = ["ROR_C", "XOR_C", "ADD_C", "ADD_C", "SUB_R", "XOR_R", "XOR_C", "ADD_RS"]

# By sub-cycle, three to a cycle: what begins there. A capital is a kind, else it is drawn from others.
LAYOUT = [
    *("MUL_R", "TARGET", "others"),
    *("MUL_R", "others", "others") * 3,
    *("wide", "others", "others"),
    *("MUL_R", "others", "others"),
    *("MUL_R", "BRANCH", "others"),
    *("MUL_R", "others", "others"),
    *("wide", "others", "others"),
    *("MUL_R", "others", "others") * 3,
]


class Instruction(NamedTuple):
    """`dst` and `src` are None where there is none."""

    name: str
    dst: int | None
    src: int | None
    constant: int


class Generator:
    def __init__(self, key: list[int]) -> None:
        self.stream = Stream(key)
        self.sub_cycle = 0
        self.attempt = 0
        self.last_family = ""
        self.ready = [0] * 8
        self.last_write: list[tuple[str, int] | None] = [None] * 8
        self.busy: set[tuple[int, str]] = set()  # cycle and port
        self.code: list[Instruction] = []

    def generate(self) -> bool:
        """Fill `code`. Returns whether it is what programs must be."""
        while len(self.code) < 512 and self.step():
            pass
        multiplications = sum("MUL" in instruction.name for instruction in self.code)
        return len(self.code) == 512 and multiplications == 192 and max(self.ready) == 194

    def step(self) -> bool:
        """One try at one instruction. Returns False at the end."""
        name = self.draw_name()
        kind = KINDS[name]
        self.last_family = kind.family
        constant = self.draw_constant(name)
        operand = next(self.stream.halves) if name in WIDE else CONSTANT
        cycle = self.when(kind)
        if cycle is None:
            return False
        src = dst = None
        if kind.reads:
            src = self.draw_src(name, cycle)
            if src is None:
                return self.stall()
            if name not in WIDE:
                operand = src
        if name not in ("TARGET", "BRANCH"):
            dst = self.draw_dst(name, src, operand, cycle)
            if dst is None:
                return self.stall()
        self.attempt = 0
        for ports in kind.ports:
            if (place := self.free_port(ports, cycle)) is not None:
                self.busy.add(place)
        if cycle >= 192:
            return False
        if dst is not None:
            self.ready[dst] = cycle + kind.latency
            self.last_write[dst] = (kind.family, operand)
        self.code.append(Instruction(name, dst, src, constant))
        self.sub_cycle += len(kind.ports)
        return True

    def stall(self) -> bool:
        if self.attempt == 0:
            self.attempt = 1
        else:
            self.attempt = 0
            self.sub_cycle += 3
        return True

    def draw_name(self) -> str:
        what = LAYOUT[self.sub_cycle % len(LAYOUT)]
        if what == "wide":
            return WIDE[next(self.stream.bytes) % 2]
        if what != "others":
            return what
        while True:
            name = OTHERS[next(self.stream.bytes) % (4 if self.attempt else 8)]
            if KINDS[name].family != self.last_family:
                return name

    def draw_constant(self, name: str) -> int:
        if name == "BRANCH":
            bits: set[int] = set()
            while len(bits) < 4:
                bits.add(next(self.stream.bytes) % 32)
            return sum(1 << bit for bit in bits)
        allowed = KINDS[name].constant
        while allowed:
            constant = next(self.stream.halves) & allowed
            if constant or name == "ADD_RS":
                return constant
        return 0

    def free_port(self, ports: str, cycle: int) -> tuple[int, str] | None:
        """The first free one of these from `cycle` on. A port map has 196 cycles."""
        for later in range(cycle, 196):
            for port in sorted(ports, key="501".index):
                if (later, port) not in self.busy:
                    return later, port
        return None

    def when(self, kind: Kind) -> int | None:
        """The first cycle in which each micro-operation, looked at alone, has a port."""
        for cycle in range(self.sub_cycle // 3, 196):
            found = {place and place[0] for place in (self.free_port(p, cycle) for p in kind.ports)}
            if len(found) == 1 and None not in found:
                return found.pop()
        return None

    def draw(self, candidates: list[int]) -> int | None:
        if len(candidates) > 1:
            return candidates[next(self.stream.halves) % len(candidates)]
        return candidates[0] if candidates else None

    def draw_src(self, name: str, cycle: int) -> int | None:
        candidates = [register for register in range(8) if self.ready[register] <= cycle]
        if name == "ADD_RS" and len(candidates) == 2 and 5 in candidates:
            return 5
        return self.draw(candidates)

    def draw_dst(self, name: str, src: int | None, operand: int, cycle: int) -> int | None:
        def fits(register: int) -> bool:
            last = self.last_write[register]
            return (
                self.ready[register] <= cycle
                and (register != src or name in WIDE)
                and not (name == "MUL_R" and last is not None and last[0] == "MUL_R" and not self.attempt)
                and last != (KINDS[name].family, operand)
                and not (name == "ADD_RS" and register == 5)
            )

        return self.draw([register for register in range(8) if fits(register)])


# --- The hash ------------------------------------------------------------------------------------------


def signed(value: int, bits: int) -> int:
    return value - 2**bits if value >> (bits - 1) else value


class HashX:
    """The hash function of a seed; `code` is None where the seed has none."""

    def __init__(self, seed: bytes) -> None:
        generator_key, self.key = keys_of(seed)
        generator = Generator(generator_key)
        self.code = generator.code if generator.generate() else None

    def run(self, r: list[int]) -> None:
        assert self.code is not None
        at = target = high = 0
        may_branch = True
        while at < len(self.code):
            name, dst, src, constant = self.code[at]
            if name == "TARGET":
                target = at
            elif name == "BRANCH":
                if may_branch and high & constant == 0:
                    may_branch = False
                    at = target
            else:
                assert dst is not None
                r[dst] = OPERATIONS[name](r[dst], 0 if src is None else r[src], constant) & MASK
                if name in WIDE:
                    high = r[dst]
            at += 1

    def hash(self, number: int) -> int:
        a, b, c, d = self.key
        a, b, c, d = a, b ^ 0xEE, c, d ^ number
        for _ in range(2):
            a, b, c, d = sip_round(a, b, c, d)
        a, c = a ^ number, c ^ 0xEE
        for _ in range(4):
            a, b, c, d = sip_round(a, b, c, d)
        r = [a, b, c, d]
        b ^= 0xDD
        for _ in range(4):
            a, b, c, d = sip_round(a, b, c, d)
        r += [a, b, c, d]
        self.run(r)
        for register, word in zip((0, 1, 6, 7), self.key, strict=True):
            r[register] = (r[register] + word) & MASK
        return sip_round(*r[:4])[0] ^ sip_round(*r[4:])[0]


OPERATIONS: dict[str, Callable[[int, int, int], int]] = {
    "UMULH_R": lambda dst, src, _: dst * src >> 64,
    "SMULH_R": lambda dst, src, _: signed(dst, 64) * signed(src, 64) >> 64,
    "MUL_R": lambda dst, src, _: dst * src,
    "SUB_R": lambda dst, src, _: dst - src,
    "XOR_R": lambda dst, src, _: dst ^ src,
    "ADD_RS": lambda dst, src, constant: dst + (src << constant),
    "ROR_C": lambda dst, _, constant: dst >> constant | dst << (64 - constant),
    "ADD_C": lambda dst, _, constant: dst + signed(constant, 32),
    "XOR_C": lambda dst, _, constant: dst ^ signed(constant, 32),
}


# --- Equi-X --------------------------------------------------------------------------------------------


def is_in_order(numbers: list[int]) -> bool:
    """Whether in each node of the tree the right half, its last number first, is not below the left."""
    if len(numbers) == 1:
        return True
    left, right = numbers[: len(numbers) // 2], numbers[len(numbers) // 2 :]
    return left[::-1] <= right[::-1] and is_in_order(left) and is_in_order(right)


def verify(challenge: bytes, numbers: list[int]) -> bool:
    """Whether these eight numbers solve the challenge."""
    function = HashX(challenge)
    if function.code is None or not is_in_order(numbers):
        return False
    hashes = [function.hash(number) for number in numbers]
    for size, zeros in ((2, 15), (4, 30), (8, 60)):
        sums = [sum(hashes[at : at + size]) for at in range(0, 8, size)]
        if any(total % 2**zeros for total in sums):
            return False
    return True


def solve(hashes: list[int]) -> set[tuple[int, ...]]:
    """All solutions, for the hashes of the numbers from 0 on: each sum meets every one that fills it up."""
    trees: list[tuple[tuple[int, ...], int]] = [((number,), value) for number, value in enumerate(hashes)]
    for zeros in (15, 30, 60):
        by_end: dict[int, list[int]] = {}
        for place, (_, value) in enumerate(trees):
            by_end.setdefault(value % 2**zeros, []).append(place)
        joined = []
        for place, (numbers, value) in enumerate(trees):
            for other in by_end.get(-value % 2**zeros, []):
                if place <= other:
                    left, right = sorted([numbers, trees[other][0]], key=lambda half: half[::-1])
                    joined.append((left + right, value + trees[other][1]))
        trees = joined
    return {numbers for numbers, _ in trees}
