# The only commands a newcomer needs. `make` lists them.
#
# PYTHON  the interpreter that the virtual environment is made from (3.10 or newer)
# VENV    where the virtual environment lies; set-up happens once and again when its inputs change
# TEST_WORKERS  processes that share the tests, file by file

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
TEST_WORKERS ?= 2
FUZZ_ARGS ?=
BENCH_ARGS ?=
SOAK_ARGS ?=

VENV_PYTHON := $(VENV)/bin/python
CORE_SOURCES := $(wildcard csrc/*.cpp csrc/*.hpp)
# The unit tests that reach the C++ core through one of its facades.
CORE_TESTS = $(shell grep -lE 'megatron_dna\.(_core|tokenizer|genome|data)' tests/unit/test_*.py)
MAX_FILE_LINES := 400

# One thread an OpenMP pool: ranks and test workers share the cores already.
export OMP_NUM_THREADS ?= 1
# Nothing here needs a hub; a look-up would only wait for a network that may not be there.
export HF_HUB_OFFLINE ?= 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help:  ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' Makefile

.PHONY: setup
setup: $(VENV)/.installed $(VENV)/.core  ## Virtual environment, pinned dependencies, C++ extension

$(VENV)/.installed: pyproject.toml setup.py constraints.txt tools/check_prerequisites.sh
	@bash tools/check_prerequisites.sh "$(PYTHON)"
	$(PYTHON) -m venv $(VENV)
	$(VENV_PYTHON) -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

$(VENV)/.core: $(CORE_SOURCES) setup.py $(VENV)/.installed
	$(VENV_PYTHON) setup.py -q build_ext --inplace
	@touch $@

.PHONY: quickstart
quickstart: setup  ## From a human genome to a DNA BERT in transformers, in minutes on two cores
	$(VENV_PYTHON) tools/quickstart.py

.PHONY: recall
recall: setup  ## Test what memory holds: train 3 seeds a variant, ask after 7 to 512 segments
	$(VENV_PYTHON) tools/recall.py --docs docs

.PHONY: test
test: setup  ## The whole test suite (PYTEST_ARGS='-k name' picks tests)
	$(VENV_PYTHON) -m pytest -n $(TEST_WORKERS) --dist loadfile $(PYTEST_ARGS)

# The newest Megatron-Core that constraints.txt has; it needs Python 3.12.
LATEST_PYTHON ?= $(shell bash tools/find_python.sh 3.12)

.PHONY: test-latest
test-latest: setup  ## Unit and rank tests on Python 3.12 with the newest Megatron-Core, if it is there
	@if [ -z "$(LATEST_PYTHON)" ]; then echo \
		"test-latest: no Python 3.12 on PATH or in pyenv: nothing was tested (LATEST_PYTHON names one)"; \
	else \
		MEGATRON_DNA_OLDER_PYTHON="$(abspath $(VENV_PYTHON))" $(MAKE) --no-print-directory test \
			VENV=.venv-latest PYTHON="$(LATEST_PYTHON)" PYTEST_ARGS="tests/unit tests/dist $(PYTEST_ARGS)"; \
	fi

# Transformer Engine's Python part alone, of the version that pairs with the environment's Megatron-Core.
# Its wheel has no binaries and needs no CUDA: tests/transformer_engine puts torch in their place.
TE_VERSION ?= 2.12.0
TE_TESTS ?= $(addprefix tests/dist/test_,gradient_parity.py memory_parity.py fused_adam.py \
	resume.py::test_resumed_run_equals_unbroken_run)
TE_PYTHON := build/transformer-engine-$(TE_VERSION)

$(TE_PYTHON): | setup
	@mkdir -p build && rm -rf $@ $@.part
	$(VENV_PYTHON) -m pip install --disable-pip-version-check -q --no-deps --target $@.part \
		transformer-engine==$(TE_VERSION)
	@mv $@.part $@

.PHONY: test-transformer-engine
test-transformer-engine: $(TE_PYTHON)  ## Transformer Engine's layers on the CPU, kernels in plain torch
	PYTHONPATH="$(CURDIR)/$(TE_PYTHON):$(CURDIR)/tests/transformer_engine/site:$(CURDIR)" \
		$(VENV_PYTHON) -m pytest -n $(TEST_WORKERS) --dist loadfile tests/transformer_engine \
		$(TE_TESTS) $(PYTEST_ARGS)

.PHONY: test-transformer-engine-latest
test-transformer-engine-latest: setup  ## The same with what pairs with the newest Megatron-Core
	@if [ -z "$(LATEST_PYTHON)" ]; then echo \
		"$@: no Python 3.12 on PATH or in pyenv: nothing was tested (LATEST_PYTHON names one)"; \
	else \
		$(MAKE) --no-print-directory test-transformer-engine VENV=.venv-latest \
			PYTHON="$(LATEST_PYTHON)" TE_VERSION=2.17.1 TE_TESTS=tests/dist/test_fused_adam.py; \
	fi

# An interpreter that has CUDA's torch, Transformer Engine and all else, where `make setup` cannot
# install it (a machine without network); otherwise that of `make setup`.
GPU_PYTHON ?=
ON_GPU = PYTHONPATH="$(CURDIR)$${PYTHONPATH:+:$$PYTHONPATH}" $(or $(GPU_PYTHON),$(VENV_PYTHON))

.PHONY: gpu-python
gpu-python: $(if $(GPU_PYTHON),,setup)
ifneq ($(GPU_PYTHON),)
	@$(ON_GPU) -c "import megatron_dna._core" 2>/dev/null || $(GPU_PYTHON) setup.py -q build_ext --inplace
endif

# A process for each file: a fault of the device in one does not spoil the others. 5: none chosen.
.PHONY: test-gpu
test-gpu: gpu-python  ## tests/gpu on this machine's GPU (GPU_PYTHON names another interpreter)
	@status=0; for file in tests/gpu/test_*.py; do echo "== $$file"; \
		$(ON_GPU) -m pytest -rs --timeout 240 $(PYTEST_ARGS) $$file || [ $$? -eq 5 ] || status=1; \
	done; exit $$status

.PHONY: bench-gpu
bench-gpu: gpu-python  ## Training speed on this machine's GPU (BENCH_ARGS='--models 1b')
	$(ON_GPU) -m benchmarks.gpu.run $(BENCH_ARGS)

# The extension is built apart (build/sanitize) and found first; its runtime must load before all.
SANITIZED = LD_PRELOAD="$$($${CXX:-g++} -print-file-name=libasan.so) \
	$$($${CXX:-g++} -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	MEGATRON_DNA_EXPECT_CORE=build/sanitize

.PHONY: sanitized-core
sanitized-core: setup
	MEGATRON_DNA_SANITIZE=1 $(VENV_PYTHON) setup.py -q build --build-base build/sanitize-tmp \
		--build-lib build/sanitize

.PHONY: test-sanitize
test-sanitize: sanitized-core  ## The C++ core's tests under AddressSanitizer and UBSan
	$(SANITIZED) PYTHONPATH=build/sanitize $(VENV)/bin/pytest --import-mode=append \
		-n $(TEST_WORKERS) --dist loadfile -p no:cacheprovider $(CORE_TESTS) $(PYTEST_ARGS)

.PHONY: fuzz
fuzz: sanitized-core  ## Random input for the C++ core and the .idx reader, 60 s, under both
	$(SANITIZED) PYTHONPATH=build/sanitize:. $(VENV_PYTHON) -W ignore tests/fuzz.py $(FUZZ_ARGS)

.PHONY: soak
soak: setup  ## Kill a 4-rank run 30 times; it must end as an unbroken one (SOAK_ARGS='--kills 5')
	$(VENV_PYTHON) -m tests.soak $(SOAK_ARGS)

.PHONY: lint
lint: setup  ## Format, style, types, arrows between packages, file length
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	@if command -v clang-format >/dev/null; then \
		echo "clang-format --dry-run -Werror csrc/*"; \
		clang-format --dry-run -Werror $(CORE_SOURCES); \
	else echo "clang-format is not installed: the C++ format was not checked"; fi
	@long=$$(find . -path ./build -prune -o -path './.*' -prune -o -path './$(VENV)' -prune -o \
		\( -name '*.py' -o -name '*.cpp' -o -name '*.hpp' \) -print0 | xargs -0 wc -l \
		| awk '$$2 != "total" && $$1 > $(MAX_FILE_LINES)'); \
	if [ -n "$$long" ]; then \
		echo "over $(MAX_FILE_LINES) lines; split by subject:"; echo "$$long"; exit 1; fi

.PHONY: format
format: setup  ## Rewrite Python and C++ in the house format
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .
	@if command -v clang-format >/dev/null; then clang-format -i $(CORE_SOURCES); fi

.PHONY: docs
docs: setup  ## Rewrite docs/configuration.md, and the table of recipes in docs/planning.md
	$(VENV_PYTHON) tools/generate_config_docs.py
	$(VENV_PYTHON) tools/generate_plan_docs.py

.PHONY: bench
bench: setup  ## Run the benchmarks; each prints what it measured against what
	@set -e; for benchmark in $(sort $(wildcard benchmarks/*.py)); do \
		echo "== $$benchmark"; $(VENV_PYTHON) $$benchmark; done

.PHONY: clean
clean:  ## Remove what was built; keeps the virtual environment and runs/
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache \
		.hypothesis $(VENV)/.core megatron_dna/_core*.so
	find megatron_dna tests tools benchmarks -name __pycache__ -prune -exec rm -rf {} +

.PHONY: distclean
distclean: clean  ## Remove the virtual environment too
	rm -rf $(VENV)
