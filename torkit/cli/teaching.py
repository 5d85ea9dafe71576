"""The lessons of `torkit`, `torkit help` and `--help`: commands in groups, a sentence and an example each.

Imports no command, so that a start and the list of all commands cost nothing.
"""

from typing import NamedTuple


class Lesson(NamedTuple):
    """One sentence on a command, and a line to try."""

    summary: str
    example: str


GROUPS = {
    "Connect programs": {
        "run": Lesson(
            "Run a program whose only way out is Tor.",
            "torkit run -- curl https://example.com/",
        ),
        "socks": Lesson("Serve SOCKS4a, SOCKS5 and HTTP to programs on this machine.", "torkit socks"),
        "status": Lesson("Show what a running proxy is doing.", "torkit status --watch"),
        "connect": Lesson(
            "Connect stdin and stdout to HOST:PORT through Tor.", "torkit connect -z -w 30 example.com:443"
        ),
        "resolve": Lesson("Look up names and addresses at an exit.", "torkit resolve example.com"),
    },
    "Look at the network": {
        "fetch-consensus": Lesson(
            "Print the list of relays, its signatures and times checked.", "torkit fetch-consensus"
        ),
        "relays": Lesson(
            "List relays, filtered, sorted and in columns.",
            "torkit relays --flag Exit --sort bandwidth -r | head",
        ),
        "relay": Lesson("Print everything that is known of one relay.", "torkit relay FINGERPRINT"),
    },
    "Build circuits step by step": {
        "choose-path": Lesson(
            "Choose paths as the client would, and print their relays.", "torkit choose-path --exit-port 443"
        ),
        "build-circuit": Lesson(
            "Build circuits, and print how long each step took.", "torkit build-circuit --count 3"
        ),
        "ping": Lesson(
            "Measure a circuit: its hops, round trips on it, and streams.", "torkit ping -c 3 example.com:443"
        ),
    },
    "Measure the network": {
        "scan": Lesson(
            "Do one thing through every exit, and print a row for each.",
            "torkit scan -- connect example.com:443",
        ),
        "cache": Lesson(
            "Export the directory, for scans that many processes share.", "torkit cache export ./directories"
        ),
    },
    "Onion services": {
        "onion": Lesson(
            "Run an onion service, share files, look at one, make keys.",
            "torkit onion serve 80:127.0.0.1:8080",
        ),
    },
    "Try things out": {
        "testnet": Lesson(
            "Run a private Tor network of real tor processes on loopback.",
            "torkit testnet run -- torkit build-circuit",
        ),
    },
    "Learn": {
        "help": Lesson("Show the manual of a command, or list them all.", "torkit help socks"),
        "version": Lesson("Print the version.", "torkit version"),
    },
}

LESSONS = {name: lesson for group in GROUPS.values() for name, lesson in group.items()}


def overview() -> str:
    """Returns all commands in their groups, a line for what each does and one for an example."""
    width = max(map(len, LESSONS))
    lines = []
    for title, group in GROUPS.items():
        lines.append(f"\n{title}:")
        for name, lesson in group.items():
            lines += [f"  {name:<{width}}  {lesson.summary}", f"  {'':<{width}}  $ {lesson.example}"]
    return "\n".join(lines) + "\n"


def epilog(name: str) -> str:
    """Returns the end of a command's help: an example, and how to read its manual page."""
    lines = [f"Example: {LESSONS[name].example}"]
    if name not in GROUPS["Learn"]:
        lines.append(f"Manual:  torkit help {name}")
    return "\b\n" + "\n".join(lines)  # \b: Typer leaves the lines as they are
