"""How the compiled core was built: what a bug in it would meet. Read from the built files, by binutils."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import torkit._fast

HERE = Path(torkit._fast.__path__[0])
ROOT = Path(__file__).parents[1]
BUILT = sorted(Path(os.environ.get("TORKIT_BUILT", HERE)).glob("*.so"))  # scripts/wheel names a wheel's
SOURCES = sorted((ROOT / "torkit" / "_fast").glob("*.pyx"))

# What the processor checks, by machine: the mark that a library carries.
BRANCH_PROTECTION = {"x86_64": "IBT, SHSTK", "aarch64": "BTI, PAC"}


def read_elf(built: Path, *options: str) -> str:
    text = subprocess.run(["readelf", "--wide", *options, built], capture_output=True, text=True, check=True)
    return text.stdout


@pytest.fixture(params=BUILT, ids=lambda built: built.name.partition(".")[0])
def built(request: pytest.FixtureRequest) -> Path:
    built: Path = request.param
    if shutil.which("readelf") is None:
        pytest.skip("no readelf here")
    if "__asan_init" in read_elf(built, "--dyn-syms"):
        pytest.skip("built for the sanitizers")
    return built


def test_every_module_of_the_core_is_built_and_what_they_share() -> None:
    modules = [source.stem for source in SOURCES]
    assert [built.name.partition(".")[0] for built in BUILT] == ["_shared", *modules]


@pytest.mark.skipif(os.environ.get("TORKIT_DEBUG") == "1", reason="built for debuggers")
def test_no_symbols_for_debuggers_are_left(built: Path) -> None:
    sections = read_elf(built, "--sections")
    assert ".dynsym" in sections
    assert ".symtab" not in sections
    assert ".debug" not in sections


def test_no_table_of_addresses_can_be_written(built: Path) -> None:
    assert "GNU_RELRO" in read_elf(built, "--program-headers")
    assert "BIND_NOW" in read_elf(built, "--dynamic")


def test_the_stack_cannot_be_executed(built: Path) -> None:
    (stack,) = re.findall(r"GNU_STACK.*", read_elf(built, "--program-headers"))
    assert " RW " in stack


def test_an_overrun_of_the_stack_is_noticed(built: Path) -> None:
    assert "__stack_chk_fail" in read_elf(built, "--dyn-syms")


def test_copies_are_checked_where_their_room_is_known() -> None:
    symbols = [read_elf(built, "--dyn-syms") for built in BUILT]
    if any("__asan_init" in text for text in symbols):
        pytest.skip("built for the sanitizers")
    assert any("__memcpy_chk" in text for text in symbols)


@pytest.mark.skipif(os.uname().machine not in BRANCH_PROTECTION, reason="nothing of the kind here")
def test_jumps_and_returns_can_be_checked_by_the_processor(built: Path) -> None:
    assert BRANCH_PROTECTION[os.uname().machine] in read_elf(built, "--notes")


@pytest.mark.parametrize("source", sorted((ROOT / "bench").glob("*.pyx")), ids=lambda source: source.stem)
def test_what_the_benches_compile_still_fits_the_core(source: Path, tmp_path: Path) -> None:
    """Only `make bench` compiles them, and nobody runs that for each change of a declaration they use."""
    pytest.importorskip("Cython")
    command = [sys.executable, "-m", "cython", "-3", "-o", str(tmp_path / "made.c"), str(source)]
    subprocess.run(command, cwd=ROOT, check=True)
