"""Networks that outlive a call: `up` and `down`, the supervisor between them, and `run_command`."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import trio

from torkit.errors import NotPossible, StorageError, TorkitError, UsageError
from torkit.testnet.files import STOP_DEADLINE, owner, wait_until
from torkit.testnet.model import Options
from torkit.testnet.network import run_testnet
from torkit.testnet.processes import end_orphans


def up(directory: Path, options: Options | None = None) -> Path:
    """Start a network that outlives this process; return the path of its network file once it is ready.

    Raises what `run_testnet` raises. Blocks; not for use inside trio.
    """
    directory = directory.resolve()
    command = [
        sys.executable,
        "-m",
        "torkit.testnet",
        str(directory),
        json.dumps(asdict(options or Options())),
    ]
    starter = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
    )
    assert starter.stdout is not None
    with starter.stdout as said:
        starter.wait()  # It only forks the supervisor: tor would take a killed one, our zombie, for alive.
        try:
            reply = said.readline()
        except BaseException:  # Ctrl-C: what was not asked to stay must not stay
            os.killpg(starter.pid, signal.SIGTERM)
            said.read()
            raise
    message: dict[str, Any] = json.loads(reply) if reply else {"error": "the supervisor ended without a word"}
    if "error" in message:
        raise NotPossible(message["error"], hint=message.get("hint"))
    return Path(message["network_file"])


def down(directory: Path) -> None:
    """End the network in `directory`, wait until its processes are gone, and remove its files.

    Raises NotPossible if there is none, TimedOut if it does not end. Blocks; not for use inside trio.
    """
    directory = directory.resolve()
    if not (directory / "lock").exists():
        raise NotPossible(f"no test network is running in {directory}")
    if (pid := owner(directory)) is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        wait_until(lambda: owner(directory) is None, STOP_DEADLINE, "the test network to end")
    end_orphans(directory)
    try:
        shutil.rmtree(directory)
    except OSError as error:
        raise StorageError(f"cannot remove the test network's files: {error}") from error


def run_command(command: Sequence[str], options: Options | None = None) -> int:
    """Run `command` on a network of its own, with TORKIT_NETWORK set; return its exit status.

    TORKIT_DATA_DIR is a scratch directory unless it is set already. Ctrl-C ends the command as in a shell,
    and the network after it. A command ended by signal N returns 128 + N. Blocks; not for use inside trio.
    """

    if shutil.which(command[0]) is None:
        raise UsageError(f"cannot run {command[0]}: no such command")  # before nine relays are started for it

    async def run() -> int:
        async with run_testnet(options=options) as net:
            environment = {"TORKIT_DATA_DIR": str(net.directory / "client"), **os.environ}
            environment["TORKIT_NETWORK"] = str(net.network_file)
            with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
                try:
                    process = await trio.lowlevel.open_process(list(command), env=environment)
                except OSError as error:
                    raise UsageError(f"cannot run {command[0]}: {error.strerror}") from error
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_pass_on, signals, process)
                    status = await process.wait()
                    nursery.cancel_scope.cancel()
            return status if status >= 0 else 128 - status

    return trio.run(run)


async def _pass_on(signals: AsyncIterator[int], process: trio.Process) -> None:
    async for signum in signals:
        if signum != signal.SIGINT:  # the terminal has sent that one to the command itself
            process.send_signal(signum)


def supervise(directory: Path, options: Options) -> None:
    """Run the network until SIGTERM. Says one JSON line on stdout: the network file, or why there is none."""

    async def run() -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_on_signal, signals, nursery.cancel_scope)
                async with run_testnet(directory, options) as net:
                    print(json.dumps({"network_file": str(net.network_file)}), flush=True)
                    _let_go_of_the_terminal()
                    await trio.sleep_forever()

    try:
        trio.run(run)
    except* TorkitError as group:
        error = group.exceptions[0]
        hint = error.hint if isinstance(error, TorkitError) else None
        print(json.dumps({"error": str(error), "hint": hint}), flush=True)


async def _cancel_on_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    async for _ in signals:
        scope.cancel()


def _let_go_of_the_terminal() -> None:
    """Close our output, so that its reader sees the end, and leave the working directory removable."""
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in 1, 2:
        os.dup2(null, descriptor)
    os.close(null)
