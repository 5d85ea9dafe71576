"""The coverage-guided harness: `python -m fuzz TARGET CORPUS [libFuzzer's options]`, in tests/.

Without arguments it names the targets.

New inputs go to the directory CORPUS; what breaks a parser is written to `crash-...` and ends the run.
"""

import sys
from pathlib import Path
from random import Random

import atheris

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))  # as pytest's `pythonpath` does
# Atheris takes whole packages, but for modules that are named: here, the scripted relay's.
RELAYS = (Path(__file__).parents[2] / "torkit/testing/relay").glob("*.py")
OURS = ["fuzz.world", "fuzz.peers", *(f"torkit.testing.relay.{path.stem}" for path in RELAYS)]
with atheris.instrument_imports(include=["torkit", "h11", "fuzz"], exclude=OURS):
    from fuzz.targets import TARGETS, UNRAISABLE, mutate, run


def main() -> None:
    if len(sys.argv) == 1:
        print(*TARGETS)
        return
    name, corpus = sys.argv[1:3]
    target = TARGETS[name]
    Path(corpus).mkdir(exist_ok=True)
    for number, valid in enumerate((target.valid, *target.others)):
        (Path(corpus) / f"valid-{number}").write_bytes(valid)

    def change(data: bytes, max_size: int, seed: int) -> bytes:
        """Half of the changes of a text know about lines, the others are libFuzzer's own."""
        if target.is_text and seed % 2:
            return mutate(data, Random(seed))[:max_size]
        return bytes(atheris.Mutate(data, max_size))

    sys.unraisablehook = lambda told: UNRAISABLE.append(told.exc_value or told.exc_type())
    options = [f"-max_len={4 * len(target.valid)}", *sys.argv[2:]]
    atheris.Setup([sys.argv[0], *options], lambda data: run(target, data), custom_mutator=change)
    atheris.Fuzz()


main()
