"""Stories of a channel with several circuits for channel.py: one that has every line, and random ones."""

from random import Random

from fuzz.linked_due import NAMES

STORY = b"""open 0 windows
created 0
extend 0
extended 0
open 1 service
created 1
extend 1
extended 1
extend 1
extended 1
extend 0
extended 0
begin 0 0
cell 0 2 connected 0 4
many 0 0 120
take 0 0 40000
take 0 0 400000
put 0 0 260000
put 0 0 260000
sendme 0 2 0
cell 0 2 sendme 0 0
cell 1 2 begin 1 7
tell 1 2 connected 1
cell 1 2 data 1 400
put 1 1 9000
hold 0
open 2 cgo
created 2
cell 1 2 data 1 100
cell 0 2 data 0 100
cell 1 2 end 1 1
release 0
extend 2
extended 2
extend 2
extended 2
resolve 2 0
cell 2 2 resolved 0 10
begin 2 1
cell 2 2 connected 1 8
many 2 1 32
cell 2 2 xoff 1 1
cell 2 2 xon 1 5
put 2 1 16000
wait 100
sendme 2 2 0
bound 2 1 600
cell 2 2 data 1 400
close 2 1
cell 2 2 data 1 40
cell 2 2 end 1 1
tell 2 0 drop none
cell 2 0 drop none 0
open 3 congestion
created 3
reads 600
padding 9
control 3 200 7
control 2 destroy 1
cell 0 1 extended2 none 9
flip 3
open 2 windows
created 2
early 2
open 2 windows
created 2
long 2
open 2 congestion
created 2
sendme 2 0 1
control 0 created2 9
end 1
huge 1
"""


def random_story(rng: Random, length: int) -> bytes:
    """A story in which most is legal: else circuits would soon be over."""
    kinds = [rng.choice(["windows", "windows", "congestion", "service", "cgo"]) for _ in range(4)]
    lines: list[str] = []
    for circ, kind in enumerate(kinds):
        lines += [f"open {circ} {kind}", f"created {circ}", *[f"extend {circ}", f"extended {circ}"] * 2]
    states: list[dict[str, str]] = [{} for _ in kinds]  # of streams: what the exit may send
    for _ in range(length):
        circ, name = rng.choice((0, 0, 0, 1, 2, 3)), rng.choice("0012")
        state = states[circ].get(name)
        if rng.random() < 0.03:
            lines.append(_oddity(rng, circ, name))
        elif state is None and kinds[circ] == "service":
            states[circ][name] = "data"
            lines.append(f"cell {circ} 2 begin {name} 4")
        elif state is None:
            states[circ][name] = "connected"
            lines.append(f"begin {circ} {name}")
        elif state == "connected" and rng.random() < 0.8:
            states[circ][name] = "data"
            lines.append(f"cell {circ} 2 connected {name} 8")
        elif rng.random() < 0.03 and kinds[circ] != "service":
            states[circ][name] = "over"
            lines.append(f"cell {circ} 2 end {name} 1")
        elif state == "data" and rng.random() < 0.4:
            lines.append(f"many {circ} {name} {rng.choice([1, 5, 31, 49, 50, 62, 110])}")
        else:
            lines.append(
                rng.choice(
                    [
                        f"put {circ} {name} {rng.choice([1, 500, 5000, 60_000])}",
                        f"put {circ} {name} {rng.choice([100_000, 250_000, 399_999])}",
                        f"take {circ} {name} {rng.choice([1, 500, 10_000])}",
                        f"take {circ} {name} {rng.randrange(60_000)}",
                        f"take {circ} {name} 399999",
                        f"sendme {circ} 2 0",
                        f"cell {circ} 2 sendme {name} 0" if kinds[circ] == "windows" else "hold 0",
                        f"cell {circ} 2 {rng.choice(['xon', 'xoff', 'xon'])} {name} 5"
                        if state == "data"
                        else "hold 0",
                        f"close {circ} {name}" if rng.random() < 0.3 else f"wait {rng.randrange(300)}",
                        f"bound {circ} {name} {rng.randrange(399_999)}"
                        if rng.random() < 0.1
                        else "release 0",
                        f"reads {rng.choice([600, 5000, 99_999])}",
                        f"padding {rng.randrange(5)}",
                    ]
                )
            )
    return "\n".join(lines).encode()


def _oddity(rng: Random, circ: int, name: str) -> str:
    return rng.choice(
        [
            f"tell {circ} {rng.randrange(3)} {rng.choice(list(NAMES))} {rng.choice([name, 'none'])}",
            f"cell {circ} {rng.randrange(3)} {rng.choice(list(NAMES))} {rng.choice([name, 'none', 'x'])} 9",
            f"cell {circ} {rng.randrange(3)} {rng.randrange(256)} {rng.choice([name, 'none', 'x'])} 9",
            f"sendme {circ} {rng.randrange(3)} {rng.randrange(5)}",
            f"control {circ} {rng.randrange(256)} {rng.choice([0, 1, 9, 600])}",
            f"control {circ} {rng.choice(['created2', 'destroy', 'create2', 'certs', 'netinfo'])} 9",
            f"resolve {circ} {name}",
            *(f"{verb} {circ}" for verb in ("flip", "early", "long", "end", "extend", "extended", "created")),
        ]
    )
