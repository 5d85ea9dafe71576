"""What a start leaves out of trio's import, and that trio is whole without. Each in a Python of its own."""

import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

FIRST = """
    import sys
    starts = {"subprocess.Popen", "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn"}
    started = []
    sys.addaudithook(lambda event, _: started.append(event) if event in starts else None)
    from torkit.cli.lean_trio import import_trio
    import_trio()
    import trio
"""


def seen_by(code: str, path: str = "") -> str:
    """What `code` prints, run after the first import of trio, which is looked for in `path` before all."""
    program = [sys.executable, "-c", dedent(FIRST) + dedent(code)]
    environment = os.environ | {"PYTHONPATH": path}
    ended = subprocess.run(program, capture_output=True, text=True, check=False, env=environment)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout.strip()


def test_a_start_imports_no_second_tls_and_no_ctypes_and_starts_no_process() -> None:
    code = """
        import torkit.cli.connect, torkit.cli.socks, torkit.client, torkit.net.pipe, torkit.net.proxy
        print(sorted({"ssl", "_ssl", "idna", "ctypes", "ctypes.util"} & sys.modules.keys()), started)
    """
    assert seen_by(code) == "[] []"


def test_what_was_left_out_is_imported_when_it_is_used() -> None:
    code = """
        import trio._socket, trio._ssl
        print(trio._ssl._stdlib_ssl.create_default_context())
        print(trio._socket._idna.encode("b\\u00fccher"))
        import ctypes.util, ssl
        print(trio._ssl._stdlib_ssl.SSLError is ssl.SSLError, ctypes.CDLL(None).getpid() > 0)
        print(ctypes.util.find_library.__module__, trio.run(trio.to_thread.run_sync, int))
    """
    context, name, *rest = seen_by(code).split("\n")
    assert context.startswith("<ssl.SSLContext object at ")
    assert name == "b'xn--bcher-kva'"
    assert rest == ["True True", "ctypes.util 0"]


def test_modules_that_were_there_stay() -> None:
    code = """
        import ctypes.util, ssl
        before = ctypes, ctypes.util, ssl
        import_trio()
        print(before == (sys.modules["ctypes"], sys.modules["ctypes.util"], sys.modules["ssl"]))
    """
    assert seen_by(code) == "True"


def test_a_trio_that_uses_one_at_once_gets_it(tmp_path: Path) -> None:
    (tmp_path / "trio.py").write_text("import ssl\nCONTEXT = ssl.SSLContext\n")
    code = """
        import ssl
        print(trio.CONTEXT is ssl.SSLContext, sys.modules["ssl"] is ssl, type(ssl))
    """
    assert seen_by(code, str(tmp_path)) == "True True <class 'module'>"
