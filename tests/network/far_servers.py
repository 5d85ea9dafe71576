"""Servers that programs know, started as processes: each a context manager, ended with it."""

import getpass
import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from network.servers import HOST, free_port
from network.torkit_process import wait_until


@contextmanager
def process_listening(command: Sequence[str | Path], port: int, log: Path) -> Iterator[None]:
    """Run `command` until the end of the block, from when it listens at `port`."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )

    def listens() -> bool:
        assert process.poll() is None, log.read_text()
        with socket.socket() as client:
            return client.connect_ex((HOST, port)) == 0

    try:
        wait_until(listens, 20, f"{command[0]} to listen")
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def ssh_server(directory: Path) -> Iterator[str]:
    """A real sshd with keys of its own: the beginning of a line that logs in at `shell.test`.

    `directory`/ssh_config is the client's configuration.
    """
    for name in ("host", "user"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / name], check=True, timeout=30
        )
    host_key = (directory / "host.pub").read_text()
    port = free_port()
    (directory / "sshd_config").write_text(
        f"ListenAddress {HOST}:{port}\nHostKey {directory}/host\nAuthorizedKeysFile {directory}/user.pub\n"
        "PidFile none\nUsePAM no\nStrictModes no\nPasswordAuthentication no\n"
        "PermitRootLogin prohibit-password\n"
    )
    (directory / "known_hosts").write_text(f"[shell.test]:{port} {host_key}")
    (directory / "ssh_config").write_text(
        f"Host *\nPort {port}\nUser {getpass.getuser()}\nIdentityFile {directory}/user\nIdentitiesOnly yes\n"
        f"UserKnownHostsFile {directory}/known_hosts\nGlobalKnownHostsFile none\n"
        "BatchMode yes\nLogLevel ERROR\n"
    )
    privileges = Path("/run/sshd")
    made = os.geteuid() == 0 and not privileges.exists()
    if made:
        privileges.mkdir(mode=0o755)  # sshd will not start as root without; its service makes it
    command: list[str | Path] = ["/usr/sbin/sshd", "-D", "-e", "-f", directory / "sshd_config"]
    try:
        with process_listening(command, port, directory / "log"):
            yield f"ssh -F {directory}/ssh_config"
    finally:
        if made:
            privileges.rmdir()


@contextmanager
def git_server(directory: Path, log: Path) -> Iterator[int]:
    """The port of a `git daemon` for the repositories in `directory`."""
    port = free_port()
    command = [
        "git",
        "daemon",
        "--export-all",
        "--reuseaddr",
        f"--listen={HOST}",
        f"--base-path={directory}",
        f"--port={port}",
    ]
    with process_listening(command, port, log):
        yield port


@contextmanager
def rsync_server(directory: Path, config: Path) -> Iterator[int]:
    """The port of an `rsync --daemon` whose module `files` is `directory`."""
    port = free_port()
    user = f"uid = {os.geteuid()}\ngid = {os.getegid()}\n" if os.geteuid() == 0 else ""
    config.write_text(f"use chroot = no\n{user}[files]\npath = {directory}\n")
    command = [
        "rsync",
        "--daemon",
        "--no-detach",
        f"--address={HOST}",
        f"--port={port}",
        f"--config={config}",
    ]
    with process_listening(command, port, config.with_suffix(".log")):
        yield port


def make_repository(bare: Path, content: bytes) -> None:
    """A bare repository with one commit of one file, `file`; by HTTP it can be fetched as files."""
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.com"]
    work = bare.with_name(f"{bare.name}.work")
    subprocess.run([*git, "init", "-q", "-b", "main", work], check=True)
    (work / "file").write_bytes(content)
    subprocess.run([*git, "-C", work, "add", "file"], check=True)
    subprocess.run([*git, "-C", work, "commit", "-q", "-m", "one"], check=True)
    subprocess.run([*git, "clone", "-q", "--bare", work, bare], check=True)
    subprocess.run([*git, "-C", bare, "update-server-info"], check=True)
