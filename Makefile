# Every target sets up what it needs; `make demo` and `make test` work on a fresh clone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := pyproject.toml constraints.txt CMakeLists.txt proto/echovlm/v1/report.proto $(wildcard plugins/dual_path_moe/cpu/* plugins/dual_path_moe/cpu/arch/* plugins/dual_path_moe/cpu/arch/*/*) \
           $(wildcard plugins/dual_path_moe/tensorrt/*)

# TensorRT's headers come inside kernel-lens. The GPU kernels take minutes to compile and only a GPU runs them: `make kernels`.
CUDA_KERNELS ?= OFF

.PHONY: setup kernels demo test test-long debian test-native test-gpu fuzz audit lint bench bench-full soak clean

setup: $(STAMP)

$(STAMP): $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps kernel-lens
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[export,dev]" \
		--config-settings cmake.define.ECHOVLM_CUDA_KERNELS=$(CUDA_KERNELS)
	touch $@

# GPU kernels for every generation into TensorRT's plugin.
kernels: setup
	$(MAKE) --always-make $(STAMP) CUDA_KERNELS=ON

demo: setup
	$(BIN)/python -m demo.run

test: setup $(if $(CI),debian)
	$(BIN)/python -m pytest

# The full counts of what `make test` samples, an hour or more; docs/test-long.md has the last results.
test-long: setup
	$(MAKE) fuzz
	$(MAKE) test-native
	$(MAKE) soak

# What the tests need of Debian, as root: a CI installs it by itself, elsewhere the tests that lack it skip and name it.
debian:
	sh tests/debian.sh

# The kernels under sanitizers.
test-native:
	sh tests/native/run.sh

# On a computer with an NVIDIA GPU: kernels, engines, reports; what it saw is appended to build/gpu-results.md.
test-gpu: kernels
	mkdir -p build
	$(BIN)/python -m pytest tests/gpu -rs --gpu-results build/gpu-results.md

# Known faults of what is pinned; needs the advisories of the Python Package Index.
audit: setup
	$(BIN)/pip install --quiet --constraint constraints.txt "pip-audit>=2.7"
	$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip

# Coverage-guided fuzzing of what comes from outside: image files and messages.
CASES ?= 20000
fuzz: setup
	$(BIN)/pip install --quiet --constraint constraints.txt "atheris>=3"
	for target in png jpeg bmp tiff webp gif video dicom request; do $(BIN)/python -m tests.fuzz $$target --cases $(CASES) || exit 1; done

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p echovlm_edge -p benchmarks -p demo -p deploy

# Every benchmark of some minutes into build/bench.json, and docs/performance.md from it.
bench: setup
	$(BIN)/python -m benchmarks.bench --json build/bench.json
	$(BIN)/python -m benchmarks.performance build/bench.json

# The published size from checkpoint to service: some 45 GB of disk in build/full, half an hour.
bench-full: setup
	$(BIN)/python -m benchmarks.full

# Sixteen clients at once on the demo's bundle; figures also in soak.json.
MINUTES ?= 10
soak: setup
	test -d bundles/demo || $(BIN)/echovlm-build --checkpoint demo/checkpoint --output bundles/demo
	$(BIN)/python -m benchmarks.soak --minutes $(MINUTES)

clean:
	rm -rf build bundles .mypy_cache .pytest_cache .ruff_cache .hypothesis
