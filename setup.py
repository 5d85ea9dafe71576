"""Build the compiled core: one extension per module of torkit/_fast, over the system's OpenSSL."""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

DEBUG = os.environ.get("TORKIT_DEBUG") == "1"  # bounds checks and line tracing back on
SANITIZE = os.environ.get("TORKIT_SANITIZE") == "1"  # AddressSanitizer and UBSan

HEADERS = [str(header) for header in Path("torkit/_fast").glob("*.h")]

compile_args = ["-O1", "-g"] if DEBUG or SANITIZE else ["-O2"]
link_args = []
if SANITIZE:
    compile_args += ["-fsanitize=address,undefined", "-fno-omit-frame-pointer"]
    link_args += ["-fsanitize=address,undefined"]

extensions = [
    Extension(
        f"torkit._fast.{source.stem}",
        [str(source)],
        libraries=["ssl", "crypto"] if source.stem == "tls" else ["crypto"],
        depends=HEADERS,
        define_macros=[("CYTHON_TRACE_NOGIL", "1")] if DEBUG else [],
        extra_compile_args=compile_args,
        extra_link_args=link_args,
    )
    for source in sorted(Path("torkit/_fast").glob("*.pyx"))
]

directives = {
    "language_level": 3,
    "auto_pickle": False,
    "autotestdict": False,
    "boundscheck": DEBUG,
    "wraparound": DEBUG,
    "linetrace": DEBUG,
}
setup(ext_modules=cythonize(extensions, compiler_directives=directives))
