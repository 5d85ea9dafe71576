"""A command as a probe: it finds a proxy in its environment that leads through its circuit and nowhere else.

Nothing keeps a command from going around its proxy: `torkit run` is for programs that may.
"""

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from shlex import join
from typing import Any

import trio

from torkit.directory.directory import Relay
from torkit.errors import OutOfResources, UsageError
from torkit.net.proxy import serve_proxy
from torkit.net.proxy.leaks import Leaks
from torkit.net.proxy.listener import StreamListener
from torkit.net.proxy.upstream import Upstream
from torkit.proto.first_byte import AnyProtocol
from torkit.scan.outcome import Outcome
from torkit.scan.way import Way

# Implementation limits.
KEPT_LEN = 4096  # bytes of each output that a row has
MAX_OUTPUT_LEN = 16 << 20  # bytes after which a command that floods is ended
LAST_WORDS = 1.0  # seconds that its descendants may hold its output open after its end
READ_SIZE = 64 << 10
BACKLOG = 64

HOST = "127.0.0.1"

PROXY_VARIABLES = ("all_proxy", "ftp_proxy", "http_proxy", "https_proxy", "no_proxy", "socks_proxy")


class Command:
    """`words` are its name and its arguments; no shell reads them."""

    target = None

    def __init__(self, words: Sequence[str]) -> None:
        """Raises UsageError where there is no such command."""
        if shutil.which(words[0]) is None:
            raise UsageError(f"no probe and no command {words[0]!r}")
        self._words = list(words)
        self._leaks = Leaks(names_only=False)  # one for all, so that it warns once
        self.text = join(words)

    async def run(self, way: Way, relay: Relay) -> Outcome:
        """Run it to its end. Raises OutOfResources; a command that is cancelled is killed."""
        with socket.socket() as listening:
            listening.bind((HOST, 0))
            listening.listen(BACKLOG)
            port = listening.getsockname()[1]
            ours = trio.socket.fromfd(listening.fileno(), listening.family, listening.type)
        listener = StreamListener(ours, _door)
        result: Outcome | OutOfResources
        async with trio.open_nursery() as nursery:
            upstream = Upstream(way.request, way.resolve)
            nursery.start_soon(partial(serve_proxy, [listener], upstream=upstream, leaks=self._leaks))
            try:
                result = await self._run(environment(os.environ, port, relay))
            except OutOfResources as error:
                result = error
            nursery.cancel_scope.cancel()
        if isinstance(result, OutOfResources):
            raise result
        return result

    async def _run(self, environ: Mapping[str, str]) -> Outcome:
        try:
            process = await trio.lowlevel.open_process(
                self._words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environ,
                process_group=0,
            )
        except OSError as error:
            raise OutOfResources(f"the command cannot be started: {os.strerror(error.errno or 0)}") from error
        assert process.stdout is not None
        assert process.stderr is not None
        outputs = Output(process.stdout), Output(process.stderr)
        try:
            async with trio.open_nursery() as nursery:
                for output in outputs:
                    nursery.start_soon(output.read, nursery.cancel_scope)
                await process.wait()
                nursery.cancel_scope.deadline = trio.current_time() + LAST_WORDS
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            with trio.CancelScope(shield=True):
                await process.wait()
                for output in outputs:
                    await output.close()
        return _outcome(process.returncode, *outputs)


class Output:
    """One of a command's outputs: its beginning, and how long it was."""

    def __init__(self, pipe: trio.abc.ReceiveStream) -> None:
        self.kept = bytearray()
        self.length = 0
        self._pipe = pipe

    @property
    def text(self) -> str:
        """What is kept; bytes that are no UTF-8 as `\\xff`."""
        return self.kept.decode("utf-8", "backslashreplace")

    @property
    def is_flood(self) -> bool:
        return self.length > MAX_OUTPUT_LEN

    async def read(self, scope: trio.CancelScope) -> None:
        """Read to the end. Cancels `scope` where that is too far."""
        while data := await self._pipe.receive_some(READ_SIZE):
            self.kept += data[: KEPT_LEN - len(self.kept)]
            self.length += len(data)
            if self.is_flood:
                scope.cancel()
                return

    async def close(self) -> None:
        await trio.aclose_forcefully(self._pipe)


def environment(given: Mapping[str, str], port: int, relay: Relay) -> dict[str, str]:
    """What the command finds in its environment: the proxy at `port`, and which relay this is about."""
    kept = {name: value for name, value in given.items() if name.lower() not in PROXY_VARIABLES}
    proxies = dict.fromkeys(("http_proxy", "https_proxy"), f"http://{HOST}:{port}")
    proxies["all_proxy"] = f"socks5h://{HOST}:{port}"
    told = {
        "TORKIT_SOCKS": f"{HOST}:{port}",
        "TORKIT_FINGERPRINT": relay.fingerprint,
        "TORKIT_NICKNAME": relay.nickname,
    }
    return kept | proxies | {name.upper(): value for name, value in proxies.items()} | told


def _door(_: socket.socket) -> AnyProtocol:
    return AnyProtocol()


def _outcome(code: int | None, stdout: Output, stderr: Output) -> Outcome:
    assert code is not None
    result: dict[str, Any] = {
        "status": code if code >= 0 else None,
        "signal": None if code >= 0 else _name_of(-code),
        "stdout": stdout.text,
        "stdout_length": stdout.length,
        "stderr": stderr.text,
        "stderr_length": stderr.length,
    }
    if stdout.is_flood or stderr.is_flood:
        return Outcome(result, "too_long", f"more than {MAX_OUTPUT_LEN} bytes came, so it was ended")
    if code < 0:
        return Outcome(result, "signal", f"it was ended by {result['signal']}")
    if code > 0:
        return Outcome(result, "exit_status", f"it ended with status {code}")
    return Outcome(result)


def _name_of(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # one of the real-time signals
        return f"SIG{number}"
