"""Stories of two linked circuits for linked.py: one that has every line, and random ones."""

from random import Random

from fuzz.linked_due import NAMES


def random_story(rng: Random, length: int) -> bytes:
    """A story in which most is legal: else it would soon be over."""
    lines = [*(["kind cgo"] if rng.random() < 0.2 else []), *(["fills"] if rng.random() < 0.5 else [])]
    opened: dict[str, str] = {}  # streams that the exit has not ended, and what it may send for them
    for _ in range(length):
        leg, name = rng.randrange(2), rng.choice("0123")
        if rng.random() < 0.03:
            lines.append(_oddity(rng, leg, name))
        elif name not in opened:
            opened[name] = rng.choice(["connected", "connected", "connected", "resolved"])
            lines.append(f"{'resolve' if opened[name] == 'resolved' else 'open'} {name}")
        elif rng.random() < 0.5:
            command = opened[name]
            if command == "connected":
                opened[name] = "data"
            elif command == "data" and rng.random() < 0.3:
                command = rng.choice(["xon", "xoff", "xon", "end"])
            if command in ("end", "resolved"):
                opened[name] = "nothing"
            if command != "nothing":
                lines.append(f"cell {leg} {command} {name} {rng.choice([0, 1, 7, 100, 488, 498])}")
        else:
            lines.append(
                rng.choice(
                    [
                        f"many {leg} {name} {rng.choice([1, 5, 31, 62])}"
                        if opened[name] == "data"
                        else f"take {name} 9",
                        f"put {name} {rng.choice([1, 500, 5000, 20_000])}",
                        f"take {name} {rng.choice([1, 500, 60_000])}",
                        f"sendme {leg} 0" if rng.random() < 0.3 else f"wait {rng.randrange(300)}",
                        f"hold {leg}",
                        f"release {leg} {rng.choice([1, 2, 50, 99_999])}",
                        f"sendme {leg} 0",
                        f"reads {rng.choice([600, 5000, 99_999])}",
                        f"tell {name} {rng.choice(['xoff', 'xon'])}",
                        f"close {name}",
                        f"bound {name} {rng.randrange(3_000, 60_000)}"
                        if rng.random() < 0.2
                        else f"hold {leg}",
                    ]
                )
            )
    return "\n".join(lines).encode()


def _oddity(rng: Random, leg: int, name: str) -> str:
    return rng.choice(
        [
            f"tell {name} {rng.choice(list(NAMES))}",
            f"drop {leg}",
            "finish 0",
            f"cell {leg} {rng.choice(list(NAMES))} {name} 9",
            f"raw {leg} {rng.randrange(2)} {rng.randrange(256)} {rng.choice(['0', '1', 'none', 'x'])} 9",
            f"raw {leg} 1 {rng.choice(list(NAMES))} {name} {rng.randrange(499)}",
            f"switch {leg} {rng.randrange(4)} {rng.choice([0, 3, 4, 400])}",
            f"sendme {leg} {rng.randrange(4)}",
            *(f"{verb} {leg}" for verb in ("flip", "early", "long", "destroy")),
        ]
    )


STORY = b"""open 0
cell 0 connected 0 8
put 0 3000
cell 0 data 0 100
cell 1 data 0 498
hold 0
cell 0 data 0 7
cell 1 data 0 7
many 1 0 40
release 0 1
take 0 600
fills
put 0 60000
sendme 0 0
sendme 1 0
wait 10
sendme 1 0
put 0 900
open 1
cell 1 xoff 0 1
put 0 1
cell 0 xon 0 5
cell 1 connected 1 4
wait 900
sendme 0 0
put 0 60000
reads 600
tell 1 xoff
bound 1 900
cell 0 data 1 400
raw 0 1 drop none 20
resolve 2
cell 1 resolved 2 10
close 1
cell 1 data 1 9
cell 0 end 1 1
switch 1 1 4
raw 1 1 data 0 9
cell 0 end 0 1
close 0
sendme 0 1
long 1
early 1
flip 1
destroy 0
drop 0
finish 0
"""
