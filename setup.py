"""Build the compiled core: one extension per module of torkit/_fast, over the system's OpenSSL.

What else a wheel brings: manual pages, and completions, which are made here.
"""

import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Distribution, Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

DEBUG = os.environ.get("TORKIT_DEBUG") == "1"  # bounds checks and line tracing back on
FUZZ = os.environ.get("TORKIT_FUZZ") == "1"  # as below, and libFuzzer sees which code has run; for clang
SANITIZE = FUZZ or os.environ.get("TORKIT_SANITIZE") == "1"  # AddressSanitizer and UBSan

JOBS = os.cpu_count() or 1

HEADERS = [str(header) for header in Path("torkit/_fast").glob("*.h")]

# What a bug in the core should meet. Each line is used where the compiler and the linker take all of it.
# tests/test_build.py reads what comes of them.
HARDENING = (
    ("-fstack-protector-strong",),
    ("-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=3"),
    ("-Wl,-z,relro,-z,now,-z,noexecstack",),
    # The processor checks indirect calls and returns: on x86, on ARM. A library is marked for that where
    # all of its parts are. The C library's start files may not be, and without constructors have no use.
    ("-fcf-protection=full", "-nostartfiles"),
    ("-mbranch-protection=standard", "-nostartfiles"),
)


def is_taken(flags: tuple[str, ...]) -> bool:
    """Whether a shared library can be made with these flags, without a warning."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory, "probe.c")
        source.write_text("#include <string.h>\nint probe(const char *text) { return (int)strlen(text); }\n")
        command = [*compiler, "-O2", "-fPIC", "-shared", "-Werror", *flags, str(source), "-o", f"{source}.so"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


# No symbols for debuggers, whatever Python itself was built with: they are nine tenths of a wheel.
compile_args = ["-O1", "-g"] if DEBUG or SANITIZE else ["-O2", "-g0"]
link_args = [] if DEBUG or SANITIZE else ["-Wl,--strip-all"]
if SANITIZE:
    sanitizers = ["-fsanitize=address,undefined"]
    if FUZZ:
        sanitizers = ["-fsanitize=address,undefined,fuzzer-no-link", "-fno-sanitize-recover=undefined"]
    compile_args += [*sanitizers, "-fno-omit-frame-pointer"]
    link_args += sanitizers
else:
    taken = [flag for flags in HARDENING if is_taken(flags) for flag in flags]
    compile_args += [flag for flag in taken if not flag.startswith(("-Wl,", "-nostartfiles"))]
    link_args += taken

# What several modules need of Cython's own, memoryviews above all, is made once: a module that they import.
SHARED = "torkit._fast._shared"

extensions = [
    Extension(SHARED, [], extra_compile_args=compile_args, extra_link_args=link_args),
    *(
        Extension(
            f"torkit._fast.{source.stem}",
            [str(source)],
            libraries=["ssl", "crypto"] if source.stem == "tls" else ["crypto"],
            depends=[*HEADERS, "setup.py"],  # which has the flags
            define_macros=[("CYTHON_TRACE_NOGIL", "1")] if DEBUG else [],
            extra_compile_args=compile_args,
            extra_link_args=link_args,
        )
        for source in sorted(Path("torkit/_fast").glob("*.pyx"))
    ),
]

directives = {
    "language_level": 3,
    "auto_pickle": False,
    "autotestdict": False,
    "boundscheck": DEBUG,
    "wraparound": DEBUG,
    "linetrace": DEBUG,
}


class BuildCore(build_ext):
    """Lets an editable install take what `build_ext --inplace` has compiled, but for what has changed."""

    def finalize_options(self) -> None:
        super().finalize_options()
        if self.editable_mode:  # setuptools would compile all of it again, into a directory that it removes
            ordinary = build(self.distribution)
            ordinary.ensure_finalized()
            self.build_lib = ordinary.build_lib


class InstallData(Distribution().get_command_class("install_data")):  # type: ignore[misc]  # a base known at run time
    """Puts completions for shells beside the manual pages."""

    def run(self) -> None:
        super().run()
        share = Path(self.install_dir, "share")
        made = subprocess.run(
            [sys.executable, "contrib/completions.py", str(share)], check=True, capture_output=True, text=True
        )
        self.outfiles += made.stdout.splitlines()


# The processes that Cython starts import this file, from Python 3.14 on.
if __name__ == "__main__":
    setup(
        ext_modules=cythonize(
            extensions,
            compiler_directives=directives,
            nthreads=JOBS,
            shared_utility_qualified_name=SHARED,
        ),
        options={"build_ext": {"parallel": JOBS}},
        data_files=[("share/man/man1", sorted(map(str, Path("man").glob("*.1"))))],
        cmdclass={"build_ext": BuildCore, "install_data": InstallData},
    )
