# Two commands for a fresh Debian machine: `make demo` and `make test`. All else is a part of them.
# PYTHON=/path/to/python3 chooses the interpreter of .venv, and that of `make test-newest`.

BIN := .venv/bin
STUBS := $(patsubst torkit/_fast/%.pyi,torkit._fast.%,$(wildcard torkit/_fast/*.pyi))
export PYTHON

.PHONY: setup demo test test-newest test-setup unit lint typecheck soak fuzz adversity sanitize bench bench-setup docs wheel clean

setup:
	@scripts/setup

demo: setup
	@$(BIN)/python scripts/demo

test: test-setup lint
	@scripts/test

test-newest:
	@scripts/test-newest

unit: setup
	@scripts/unit

test-setup:
	@scripts/setup --tests

lint: setup
	@$(BIN)/ruff check -q . scripts/demo
	@$(BIN)/ruff format -q --check . scripts/demo || { echo "make: not formatted; run $(BIN)/ruff format" >&2; exit 1; }

typecheck: setup
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/python -m mypy.stubtest --mypy-config-file pyproject.toml --concise $(STUBS)

soak: test-setup
	@$(BIN)/pytest -q -rP -p no:cacheprovider tests/network/soak_*.py

fuzz: test-setup
	@scripts/fuzz

adversity: setup
	@TORKIT_ADVERSITY=all $(BIN)/pytest -q tests/net/test_adversity.py tests/net/test_onion_adversity.py tests/net/test_hosting_adversity.py tests/net/test_directory_adversity.py

sanitize: setup
	@scripts/sanitize

bench: bench-setup
	@$(BIN)/python -m bench

bench-setup:
	@scripts/setup --bench

docs: setup
	@$(BIN)/python -m pip install -q --disable-pip-version-check --group docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -q && $(BIN)/python contrib/site.py site

wheel: setup
	@scripts/wheel

clean:
	@rm -rf build dist site torkit.egg-info torkit/_fast/*.c torkit/_fast/*.so .venv/torkit-build.stamp \
		.mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
