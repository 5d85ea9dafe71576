"""Programs in namespaces of their own, with the test as their network; where a sandbox can be. No Tor."""

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import pytest

from torkit.sandbox import can_be_closed

only_with_a_sandbox = pytest.mark.skipif(
    not can_be_closed(), reason="this kernel, or machine, has no sandbox (Landlock since Linux 6.2)"
)

# In a process of its own, since only one without threads may fork: what arrives is told, line by line.
_PARENT = """
import json, os, select, socket, sys
from torkit.namespaces import CannotRun, Child
from torkit.net.proxy.sockdiag import SockDiag
from torkit.net.proxy.transparent import original_destination

def tell(**what):
    print(json.dumps(what), flush=True)

child = Child.start(sys.argv[1:], dict(os.environ))
try:
    sockets = child.take_sockets()
    child.run()
except Exception as error:
    child.wait()
    tell(error=type(error).__name__, message=str(error), hint=getattr(error, "hint", None))
    sys.exit()
kernel = SockDiag(sockets.kernel)
told = {sockets.proxy: "proxy"}
told.update(dict.fromkeys(sockets.redirected, "redirected"))
told.update(dict.fromkeys(sockets.dns, "dns"))
ended = os.pidfd_open(child.pid)
while True:
    ready, _, _ = select.select([*told, ended], [], [])
    for sock in ready:
        if sock == ended:
            _, status = os.waitpid(child.pid, 0)
            tell(code=os.waitstatus_to_exitcode(status))
            sys.exit()
        if told[sock] == "dns":
            data, sender = sock.recvfrom(512)
            sock.sendto(data[::-1], sender)
            tell(dns=data.decode("latin-1"))
        else:
            accepted, _ = sock.accept()
            target = original_destination(accepted)
            accepted.sendall(b"welcome")
            is_open = not kernel.is_closed_by_program(accepted)
            while accepted.recv(100):
                pass
            tell(**{told[sock]: None if target is None else [str(target[0]), target[1]], "is_open": is_open})
"""


def confine(
    command: list[str],
    *,
    environment: Mapping[str, str] = os.environ,
    within: Sequence[str] = (),
    **settings: Any,
) -> list[dict[str, Any]]:
    """Run `command` in namespaces of its own; returns what reached its network, and its exit code last.

    `within` is the beginning of a command that makes the host which `command` is confined on.

    Skips the test where the system forbids namespaces.
    """
    done = subprocess.run(
        [*within, sys.executable, "-c", _PARENT, *command],
        stdout=subprocess.PIPE,
        env=dict(environment),
        timeout=30,
        check=True,
        **settings,
    )
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith(b"{")]


@cache
def skip_where_forbidden() -> pytest.MarkDecorator:
    """For tests of what the system may forbid, or not have."""
    [*_, last] = confine(["true"])
    return pytest.mark.skipif("error" in last, reason=f"{last.get('message')} ({last.get('hint')})")


def python(code: str) -> list[str]:
    """A command: a program in Python, whose assertions are the test's."""
    return [sys.executable, "-c", textwrap.dedent(code)]
