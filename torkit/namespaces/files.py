"""Files that would tell a program other resolvers than ours, and sockets of the host that lead out.

A network namespace holds what has an address or an abstract name. A Unix socket with a path is a file,
and whoever listens there has the host's network and may do a program's bidding: a resolver's cache, a
message bus, Docker, a shared ssh connection. So every path that somebody listens at is covered, but for
those that programs cannot do without, and that connect nowhere by themselves.
"""

import os
import stat
from collections.abc import Iterable, Mapping
from errno import EACCES, ENOENT

from torkit.namespaces.kernel import MS_BIND, MS_NODEV, MS_NOSUID, mount, unmount

RESOLV_CONF = "nameserver 127.0.0.1\nsearch .\n"  # without `search`, the host's own domain would be
HOSTS_LINE = "hosts: files dns"  # nsswitch.conf(5): no multicast DNS, no resolver's socket

# Where the files that are mounted are made: a directory of every system, in which nobody listens. What is
# made there is in this mount namespace only, and out of sight before the program begins.
SCAFFOLD = "/sys"

# Services that may listen in another network namespace than ours, as those that a container is lent.
LENT = (
    *("/run/docker.sock", "/run/podman/podman.sock", "/run/containerd/containerd.sock"),
    *("/run/dbus/system_bus_socket", "/run/nscd/socket", "/run/systemd/resolve/io.systemd.Resolve"),
)

IS_LISTENING = 0x10000  # __SO_ACCEPTCON in /proc/net/unix


def cover_files(listening: Iterable[str], environment: Mapping[str, str]) -> None:
    """Cover what must not be read or connected to; `listening` is what `listening_paths` returned outside.

    Raises OSError.
    """
    mount("tmpfs", SCAFFOLD, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755")
    _cover("/etc/resolv.conf", _make("resolv.conf", RESOLV_CONF))
    if (nsswitch := _read("/etc/nsswitch.conf")) is not None:
        _cover("/etc/nsswitch.conf", _make("nsswitch.conf", with_our_hosts_line(nsswitch)))
    nothing = _make("nothing", "")
    for path in {*listening, *LENT}:
        if not is_kept(path, environment) and _is_socket(path):
            _cover(path, nothing)
    unmount(SCAFFOLD)


def listening_paths() -> list[str]:
    """The absolute paths that somebody in this network namespace listens at."""
    paths = []
    for line in (_read("/proc/self/net/unix") or "").splitlines()[1:]:
        # address: references protocol flags type state inode path
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and int(fields[3], 16) & IS_LISTENING and fields[7].startswith("/"):
            paths.append(fields[7])
    return paths


def is_kept(path: str, environment: Mapping[str, str]) -> bool:
    """Whether a program may connect to `path`: agents that hold keys, and displays."""
    runtime = environment.get("XDG_RUNTIME_DIR", "")
    kept = {
        environment.get("SSH_AUTH_SOCK", ""),
        os.path.join(runtime, environment.get("WAYLAND_DISPLAY", "wayland-0")),
    }
    folder, name = os.path.split(path)
    return path in kept or name == "S.gpg-agent" or folder == "/tmp/.X11-unix"  # noqa: S108


def with_our_hosts_line(nsswitch: str) -> str:
    """The text of an nsswitch.conf, but for who is asked for hosts."""
    lines = [line for line in nsswitch.splitlines() if not line.lstrip().startswith("hosts:")]
    return "\n".join([*lines, HOSTS_LINE, ""])


def _make(name: str, text: str) -> str:
    path = f"{SCAFFOLD}/{name}"
    with open(path, "w") as file:
        file.write(text)
    os.chmod(path, 0o444)
    return path


def _cover(path: str, source: str) -> None:
    """What is not there, or cannot be reached by us, cannot be by the program."""
    try:
        mount(source, path, "", MS_BIND)
    except OSError as error:
        if error.errno not in (ENOENT, EACCES):
            raise


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False


def _read(path: str) -> str | None:
    try:
        with open(path, errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return None
