"""Files that would tell a program other resolvers than ours, and sockets of the host that lead out.

A network namespace holds what has an address or an abstract name. A Unix socket with a path is a file,
and whoever has bound it has the host's network and may do a program's bidding: a resolver's cache, a
message bus, Docker, a shared ssh connection. So every path that somebody has bound is covered, wherever it is
mounted, and every socket that is itself a mount, as containers are lent them; but for those that programs
cannot do without, and that connect nowhere by themselves.

A cover goes where its file is made anew outside, as by a daemon that restarts. So /run, where daemons of the
system are found, is a directory of our own: what was there is in it but for known services, and nothing new.
"""

import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from errno import EACCES, ENOENT
from typing import NamedTuple

from torkit.namespaces.kernel import MS_BIND, MS_NODEV, MS_NOSUID, MS_REC, mount, unmount

RESOLV_CONF = "nameserver 127.0.0.1\nsearch .\n"  # without `search`, the host's own domain would be
HOSTS_LINE = "hosts: files dns"  # nsswitch.conf(5): no multicast DNS, no resolver's socket

# Where what is mounted is made: a directory of every system, in which nobody listens. What is made there is
# in this mount namespace only, and out of sight before the program begins.
SCAFFOLD = "/sys"

RUN = "/run"

# Directories of /run whose services look up names, or do anybody's bidding. libc asks nscd before it reads
# nsswitch.conf.
SERVICES = ("avahi-daemon", "containerd", "dbus", "nscd", "podman")

# A service in another network namespace than ours, as a container is lent it, is not seen to listen. Most of
# their sockets are mounts; these are in a directory that is one.
LENT = ("/run/systemd/resolve/io.systemd.Resolve", "/run/systemd/resolve/io.systemd.Resolve.Monitor")


def cover_files(bound: Iterable[str], environment: Mapping[str, str]) -> None:
    """Cover what must not be read or connected to; `bound` is what `bound_paths` returned outside.

    Raises OSError.
    """
    mounts = list(_mounts())
    covered = {*bound, *LENT, *aliases(bound, mounts), *(one.place for one in mounts)}
    mount("tmpfs", SCAFFOLD, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755")
    _replace_run(environment)
    _cover("/etc/resolv.conf", _make("resolv.conf", RESOLV_CONF))
    if (nsswitch := _read("/etc/nsswitch.conf")) is not None:
        _cover("/etc/nsswitch.conf", _make("nsswitch.conf", with_our_hosts_line(nsswitch)))
    nothing = _make("nothing", "")
    for path in covered:
        if not is_kept(path, environment) and _is_socket(path):
            _cover(path, nothing)
    unmount(SCAFFOLD)


def _replace_run(environment: Mapping[str, str]) -> None:
    copy = f"{SCAFFOLD}{RUN}"
    os.mkdir(copy)
    os.chmod(copy, 0o755)  # noqa: S103  # as the system's own, whatever the umask
    for name in _entries(RUN):
        path, place = f"{RUN}/{name}", f"{copy}/{name}"
        if os.path.islink(path):
            os.symlink(os.readlink(path), place)
        elif os.path.isdir(path) and name not in SERVICES:
            os.mkdir(place)
            mount(path, place, "", MS_BIND | MS_REC)
        elif os.path.isfile(path) or is_kept(path, environment):
            _make(f"{RUN}/{name}", "")
            mount(path, place, "", MS_BIND)
    mount(copy, RUN, "", MS_BIND | MS_REC)
    _leave_what_is_replaced()


def _leave_what_is_replaced() -> None:
    """Leave a working directory in the old /run: paths from it would lead to its old files."""
    try:
        here = os.getcwd()
        if f"{here}/".startswith(f"{RUN}/"):
            os.chdir(here)
    except OSError:  # it is no more
        os.chdir("/")


def bound_paths() -> set[str]:
    """Returns the paths at which somebody in this network namespace can be reached by a Unix socket.

    A path that is relative to its owner's working directory is found where we may know that directory.
    """
    paths = set()
    for line in (_read("/proc/self/net/unix") or "").split("\n")[1:]:
        # address: references protocol flags type state inode path
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and not fields[7].startswith("@"):  # an abstract name
            paths.add(fields[7])
    relative = {path for path in paths if not path.startswith("/")}
    folders = {_folder_of(pid) for pid in _entries("/proc") if pid.isdecimal()} if relative else set()
    return paths - relative | {os.path.join(folder, path) for folder in folders for path in relative}


class Mount(NamedTuple):
    """One mount: `root` of the file system `device` is at `place`. proc_pid_mountinfo(5)."""

    device: str
    root: str
    place: str


def _mounts() -> Iterator[Mount]:
    for line in (_read("/proc/self/mountinfo") or "").splitlines():
        device, root, place = (_OCTAL.sub(_char_of, field) for field in line.split()[2:5])
        yield Mount(device, root, place)


_OCTAL = re.compile(r"\\([0-7]{3})")  # of a space, a tab, a newline or a backslash


def _char_of(found: re.Match[str]) -> str:
    return chr(int(found[1], 8))


def aliases(paths: Iterable[str], mounts: Sequence[Mount]) -> set[str]:
    """Returns other paths of the same files: what is mounted in two places has two names."""
    visible = {one.place: one for one in mounts}  # of two at one place the last hides the first
    found = set()
    for path in map(os.path.realpath, paths):
        place = path
        while place not in visible and place != "/":
            place = os.path.dirname(place)
        home = visible.get(place)
        if home is None:
            continue
        inner = os.path.join(home.root, _below(place, path) or "")
        for one in mounts:
            if one.device == home.device and (rest := _below(one.root, inner)) is not None:
                found.add(os.path.join(one.place, rest) if rest else one.place)
    return found


def _below(folder: str, path: str) -> str | None:
    """Returns the rest of `path` below `folder`, empty where they are one; None where it is elsewhere."""
    if path == folder:
        return ""
    start = folder.rstrip("/") + "/"
    return path[len(start) :] if path.startswith(start) else None


def is_kept(path: str, environment: Mapping[str, str]) -> bool:
    """Returns whether a program may connect to `path`: agents that hold keys, and displays."""
    runtime = environment.get("XDG_RUNTIME_DIR", "")
    kept = {
        environment.get("SSH_AUTH_SOCK", ""),
        os.path.join(runtime, environment.get("WAYLAND_DISPLAY", "wayland-0")),
    }
    folder, name = os.path.split(path)
    return path in kept or name == "S.gpg-agent" or folder == "/tmp/.X11-unix"  # noqa: S108  # the X server's


def with_our_hosts_line(nsswitch: str) -> str:
    """Returns the text of an nsswitch.conf, but for who is asked for hosts."""
    lines = [line for line in nsswitch.splitlines() if not line.lstrip().startswith("hosts:")]
    return "\n".join([*lines, HOSTS_LINE, ""])


def _entries(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _folder_of(pid: str) -> str:
    """Its working directory; `/` where we may not know."""
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return "/"


def _make(name: str, text: str) -> str:
    path = f"{SCAFFOLD}/{name}"
    with open(path, "w") as file:
        file.write(text)
    os.chmod(path, 0o444)
    return path


def _cover(path: str, source: str) -> None:
    """Mount `source` over `path`. A path missing or out of our reach is ignored: so it is for the program."""
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
