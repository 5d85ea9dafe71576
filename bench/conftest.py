"""Cython modules beside the benches, built for one run."""

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
FAST = HERE.parent / "torkit" / "_fast"


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """build(name) is the module made of bench/NAME.pyx."""

    def build(name: str) -> Any:
        directory = tmp_path_factory.mktemp(name)
        source = shutil.copy(HERE / f"{name}.pyx", directory)
        command = [sys.executable, "-m", "Cython.Build.Cythonize", "--inplace", "--quiet", "-3"]
        directives = ["-X", "boundscheck=False", "-X", "wraparound=False"]
        flags = os.environ | {"CFLAGS": f"-O2 -I{FAST}"}
        subprocess.run([*command, *directives, str(source)], check=True, cwd=HERE.parent, env=flags)
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(directory)
            return importlib.import_module(name)

    return build
