"""The obstacles to namespaces of one's own, and how to remove them."""

import os
from errno import EACCES, ENOSPC, EPERM

from torkit.namespaces.network import RedirectionError

# Settings of Linux and of distributions that forbid it: their files below /proc/sys, and the value that does.
_SWITCHES = (
    (
        "kernel/unprivileged_userns_clone",
        "0",
        "as root: sysctl kernel.unprivileged_userns_clone=1",
    ),
    (
        "kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "AppArmor forbids it; as root: sysctl kernel.apparmor_restrict_unprivileged_userns=0, "
        "or a profile with `userns,` for this program",
    ),
    (
        "user/max_user_namespaces",
        "0",
        "as root: sysctl user.max_user_namespaces=15000",
    ),
    ("user/max_net_namespaces", "0", "as root: sysctl user.max_net_namespaces=15000"),
)
_IN_A_CONTAINER = "if this is a container, its seccomp profile or its missing capabilities may forbid it"


def explain(step: str, error: OSError | RedirectionError) -> tuple[str, str]:
    """Returns a sentence on a step that failed, and a hint."""
    if isinstance(error, RedirectionError):
        if "not installed" in str(error):
            return str(error), "install it, on Debian: apt-get install nftables"
        return (
            f"cannot redirect connections: {error}",
            "as root: modprobe nft_chain_nat nft_redir nft_reject_inet",
        )
    message = f"the system does not let us {step}: {os.strerror(error.errno or 0)}"
    if error.errno not in (EPERM, EACCES, ENOSPC):
        return message, "it needs Linux with user and network namespaces"
    for name, forbidding, hint in _SWITCHES:
        if _read(f"/proc/sys/{name}") == forbidding:
            return message, hint
    return message, _IN_A_CONTAINER


def _read(path: str) -> str | None:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return None
