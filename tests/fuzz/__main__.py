"""The coverage-guided harness: `python -m fuzz TARGET CORPUS [libFuzzer's options]`, in tests/.

Without arguments it names the targets.

New inputs go to the directory CORPUS; what breaks a parser is written to `crash-...` and ends the run.
"""

import sys
from pathlib import Path
from random import Random

import atheris

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))  # as pytest's `pythonpath` does
with atheris.instrument_imports(
    include=["torkit.directory", "torkit.hs", "torkit.proto", "h11", "fuzz.linked", "fuzz.linked_due"]
):
    from fuzz.targets import TARGETS, mutate, run


def main() -> None:
    if len(sys.argv) == 1:
        print(*TARGETS)
        return
    name, corpus = sys.argv[1:3]
    target = TARGETS[name]
    Path(corpus).mkdir(exist_ok=True)
    (Path(corpus) / "valid").write_bytes(target.valid)

    def change(data: bytes, max_size: int, seed: int) -> bytes:
        """Half of the changes know about lines, half are libFuzzer's own."""
        if seed % 2:
            return mutate(data, Random(seed))[:max_size]
        return bytes(atheris.Mutate(data, max_size))

    options = [f"-max_len={4 * len(target.valid)}", *sys.argv[2:]]
    atheris.Setup([sys.argv[0], *options], lambda data: run(target, data), custom_mutator=change)
    atheris.Fuzz()


main()
