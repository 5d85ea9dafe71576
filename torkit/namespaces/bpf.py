"""Programs of BPF that judge system calls, as the kernel takes them: seccomp(2), <linux/filter.h>."""

from collections.abc import Iterator

Step = tuple[int, int, int, int]

LOAD, AND, EQUAL, GIVE = 0x20, 0x54, 0x15, 0x06  # BPF_LD|W|ABS, BPF_ALU|AND|K, BPF_JMP|JEQ|K, BPF_RET|K

# What is judged, in struct seccomp_data of <linux/seccomp.h>.
LOAD_NUMBER: Step = (LOAD, 0, 0, 0)
LOAD_ARCHITECTURE: Step = (LOAD, 0, 0, 4)

ALLOW: Step = (GIVE, 0, 0, 0x7FFF_0000)  # SECCOMP_RET_ALLOW


def load_argument(index: int) -> Step:
    """The lower half of an argument of the call, on machines whose numbers begin with their lowest byte."""
    return (LOAD, 0, 0, 16 + 8 * index)


def keep(bits: int) -> Step:
    """Of the value at hand these bits."""
    return (AND, 0, 0, bits)


def when(value: int, *steps: Step) -> Iterator[Step]:
    """`steps`, 255 at most, where the value at hand is `value`; else what comes behind them."""
    yield (EQUAL, 0, len(steps), value)
    yield from steps


def unless(value: int, *steps: Step) -> Iterator[Step]:
    """`steps`, 255 at most, where the value at hand is not `value`; else, or then, what comes behind them."""
    yield (EQUAL, len(steps), 0, value)
    yield from steps


def fail(number: int) -> Step:
    """The call fails with this errno."""
    return (GIVE, 0, 0, 0x0005_0000 | number)  # SECCOMP_RET_ERRNO
