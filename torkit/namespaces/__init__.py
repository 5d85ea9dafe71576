"""Runs a program in namespaces of its own. Its only way out is sockets that it leaves with us. Linux only.

    child.py      the parent's side: starts the child, takes its sockets, lets it become the program
    inside.py     the child's side, in the order in which things happen
    between.py    what both sides tell each other
    network.py    a network of nothing but ourselves: routes, redirection, listeners
    files.py      what must not tell names or reach out otherwise: resolv.conf, sockets of the host
    calls.py      system calls that would pass by all this
    bpf.py        programs that judge system calls
    kernel.py     system calls that Python does not have
    obstacles.py  what forbids it, and how to allow it

No root is needed: a user namespace gives the child the right to all this, within itself. namespaces(7).

    parent                        child
    fork ------------------------ unshare: user, network and mount namespaces
    write its uid_map <---------- "unshared"
    "mapped" -------------------> network, files
    take the sockets <----------- sockets, or what forbids it
    a client starts, and serves
    "run" ----------------------> give up every right, become the program
    see the end of file <-------- (or an error)
"""

from torkit.namespaces.between import PROXY_PORT, Sockets
from torkit.namespaces.child import CannotRun, Child

__all__ = ["PROXY_PORT", "CannotRun", "Child", "Sockets"]
