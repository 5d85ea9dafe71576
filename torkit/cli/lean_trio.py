"""The first import of trio, without what no command of ours uses: 5 ms less at every start.

trio's TLS and name look-ups import ssl and idna. The naming of its threads imports ctypes, which then runs
ldconfig to find libpthread, and compilers where that knows nothing: a process that nobody asked for.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Later(ModuleType):
    """Stands for a module until something of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), name)


def _no_library(_name: str) -> None:
    """There is none, whether ctypes is to find it or to load it."""


def import_trio() -> None:
    """Import trio. Where this is the first import of the process, trio's threads have no names."""
    util = _Later("ctypes.util")
    vars(util).update(find_library=_no_library)
    ctypes = _Later("ctypes")
    vars(ctypes).update(util=util, CDLL=_no_library)
    unused = [_Later(name) for name in ("ssl", "idna") if name not in sys.modules]
    stand_ins = {module.__name__: module for module in (ctypes, util, *unused)}
    hidden = {name: sys.modules[name] for name in stand_ins if name in sys.modules}
    sys.modules.update(stand_ins)
    try:
        import_module("trio")
    finally:
        for name, module in stand_ins.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
        sys.modules.update(hidden)
