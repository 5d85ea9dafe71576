"""torkit.pytest, as another project uses it: the tests that docs/library.md shows."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from network.torkit_process import skip_without

PAGE = Path(__file__).parents[2] / "docs" / "library.md"
OUTCOMES = "-q", "-p", "no:cacheprovider", "-W", "error"


def run_pytest(directory: Path, program: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    (directory / "test_it.py").write_text(program)
    return subprocess.run(
        [sys.executable, "-m", "pytest", *OUTCOMES, str(directory)],
        env=os.environ | environment,
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.network
@skip_without("curl")
def test_the_tests_of_the_page_pass(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    [program] = [block for block in blocks if "import pytest" in block]
    ended = run_pytest(tmp_path, program)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "4 passed" in ended.stdout


def test_whoever_does_not_ask_pays_nothing(tmp_path: Path) -> None:
    ended = run_pytest(
        tmp_path,
        "import sys\n\n\ndef test_it():\n"
        "    ours = {name for name in sys.modules if name.startswith('torkit')}\n"
        "    assert ours == {'torkit', 'torkit.pytest'}\n",
    )
    assert ended.returncode == 0, ended.stdout


def test_where_there_is_no_tor_tests_are_skipped(tmp_path: Path) -> None:
    ended = run_pytest(tmp_path, "def test_it(tor_network):\n    pass\n", PATH=str(tmp_path))
    assert ended.returncode == 0, ended.stdout
    assert "1 skipped" in ended.stdout
