# make demo    watch a policy learn from feedback, and a planted reward hack caught
# make test    the tests (about five minutes at most on two cores)
# make check   formatting, lint and types
# make docs    pages generated from the code (docs/methods.md, the atlas)
# make proof   the long proofs; writes docs/proof/
# make bench   the speed measurements
#
# Each target first makes .venv when it is missing or older than pyproject.toml. Settings:
#   PYTHON=python3.12   the interpreter .venv is made from (3.11 or later)
#   TORCH=torch         another torch than the one this is tested with
#   JOBS=1              test processes

PYTHON ?= python3
TORCH ?= torch==2.13.0
JOBS ?= 2

# Paths are relative to this file's folder, which may have spaces in its name.
READY := .venv/.ready
PY := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check install -qq

.PHONY: setup demo test check format docs proof bench clean
.DEFAULT_GOAL := setup

setup: $(READY)

$(READY): pyproject.toml setup.py $(wildcard src/triloop/kernels/csrc/*)
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Triloop needs Python 3.11 or later, and {sys.executable} is {v[0]}.{v[1]}. Name another with: make PYTHON=python3.11")'
	@echo "setup 1/3  .venv from $$($(PYTHON) --version)"
	@test -x $(PY) || $(PYTHON) -m venv .venv
	@echo "setup 2/3  $(TORCH)  (the largest part: up to a few minutes)"
	@$(PIP) '$(TORCH)'
	@echo "setup 3/3  triloop and the tools of its tests"
	@$(PIP) -e '.[dev,hf,math,gym,gguf]'
	@$(PY) -c 'from triloop.kernels import native; print("compiled kernels:", native.describe())'
	@touch $(READY)
	@echo "setup done"

demo: $(READY)
	@.venv/bin/triloop run demo

test: $(READY)
	@$(PY) -m pytest -q -n $(JOBS) --dist worksteal tests

check: $(READY)
	@$(PY) -m ruff format --check -q .
	@$(PY) -m ruff check -q .
	@$(PY) -m mypy
	@echo "check done"

format: $(READY)
	@$(PY) -m ruff check -q --fix .
	@$(PY) -m ruff format -q .

docs: $(READY)
	@$(PY) scripts/make_docs.py

# One script, one claim: proofs/NAME.py writes docs/proof/NAME.md and docs/proof/NAME.json.
# All of them run, and one that fails fails the target.
proof: $(READY)
	@mkdir -p docs/proof
	@failed=0; for script in proofs/[a-z]*.py; do \
		test -e "$$script" || continue; \
		echo "proof  $$script"; \
		$(PY) "$$script" || { echo "FAILED  $$script"; failed=1; }; \
	done; exit $$failed

bench: $(READY)
	@for size in 1m 5m; do for name in rollout train loop; do \
		.venv/bin/triloop bench $$name --size $$size || exit 1; \
	done; done

clean:
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
