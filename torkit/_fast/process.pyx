"""Keeps other programs of the same user out of this process."""

from libc.errno cimport errno
from libc.string cimport strerror

cdef extern from "<sys/prctl.h>" nogil:
    int PR_SET_DUMPABLE
    int prctl(int option, unsigned long value, unsigned long unused, unsigned long also, unsigned long too)

cdef extern from "<sys/resource.h>" nogil:
    struct rlimit:
        unsigned long rlim_cur
        unsigned long rlim_max
    int RLIMIT_CORE
    int getrlimit(int resource, rlimit* limit)
    int setrlimit(int resource, const rlimit* limit)


def forbid_inspection():
    """Let nobody but root attach a debugger or read the memory, and leave no core. Raises OSError."""
    cdef rlimit limit
    if getrlimit(RLIMIT_CORE, &limit) == 0:
        limit.rlim_cur = 0
        if setrlimit(RLIMIT_CORE, &limit) == 0 and prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0:
            return
    raise OSError(errno, strerror(errno).decode())
