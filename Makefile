# Every target sets up what it needs; `make demo` and `make test` work on a fresh clone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FIRST := $(VENV)/.demo-installed
NODE := $(VENV)/.dicom-installed
CONSOLE := $(VENV)/.console-installed
STAMP := $(VENV)/.installed
SOURCES := pyproject.toml constraints.txt CMakeLists.txt proto/echovlm/v1/report.proto $(wildcard plugins/attention/cpu/*) \
           $(wildcard plugins/dual_path_moe/*.cmake $(addprefix plugins/dual_path_moe/,cpu/* cpu/arch/* cpu/arch/*/* launch/* onnxruntime/* tensorrt/*))

# The GPU kernels take minutes to compile and only a GPU runs them: `make kernels`.
CUDA_KERNELS ?= OFF
# ON or OFF, and the compute capability that they are for, as 90; all where that is empty.
kernels_for = --config-settings cmake.define.ECHOVLM_CUDA_KERNELS=$(1) --config-settings cmake.define.ECHOVLM_SMS=$(2)

# The rooms of `make test-fast`, by what they took: 70 s of a core with the one small bundle that they share.
FAST := tests/test_house.py $(addprefix tests/,clinical contracts installation prompting resources)

# What a GPU serves as a CPU does: `make test` runs some of it on GPUs of numpy too, `make test-long` all.
SERVED := $(addprefix tests/,serving/test_golden_service.py serving/test_studies.py serving/test_conversations.py engine/test_scheduler.py engine/test_preemption.py)

# Modules are compiled as they are imported, a tenth of them, instead of all at once.
INSTALL := $(BIN)/pip install --quiet --no-compile --constraint constraints.txt

# Whole files of tests to as many processes as there are WORKERS, in order: what a file's tests share is made once.
WORKERS ?= 2
PARALLEL := -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: setup kernels say-demo say-test demo demo-console demo-dicom test test-fast test-long debian test-native test-gpu gpu-check gpu-carry fuzz audit lint buf sdist release rehearse-release bench bench-full bench-drafting bench-peers soak soak-dicom clean

setup: $(STAMP)

# What builds and serves a bundle, and no more.
$(FIRST): $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable ".[demo]"
	touch $@

# The HTTP door with its console too, and what makes documents.
$(CONSOLE): $(FIRST)
	$(INSTALL) --editable ".[demo,http,clinical]"
	touch $@

# The DICOM node too.
$(NODE): $(FIRST)
	$(INSTALL) --editable ".[demo,dicom]"
	touch $@

# What the tests and benchmarks need too; TensorRT's headers come inside kernel-lens, so the package is built once more.
$(STAMP): $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) --no-deps kernel-lens
	$(INSTALL) --editable ".[serve,dev]" $(call kernels_for,$(CUDA_KERNELS),)
	rm -f $(VENV)/.gpu-*
	touch $(FIRST) $(NODE) $(CONSOLE) $@

# GPU kernels for every generation into ONNX Runtime's operators and TensorRT's plugin.
kernels: setup
	$(MAKE) --always-make $(STAMP) CUDA_KERNELS=ON

# Either step is said before it begins; what is installed already is not installed again.
say-demo:
	@test -e $(FIRST) || echo "make demo: installs PyTorch and ONNX Runtime into $(VENV) (1.2 GB), then builds and serves a bundle; three to ten minutes on two cores."

say-test:
	@test -e $(STAMP) || echo "make test: installs what the tests need into $(VENV) (up to 3.7 GB in all), five to ten minutes on two cores."

demo: say-demo $(FIRST)
	$(BIN)/python -m demo.run

# A page to look at, with a simulated study to try; it stays until Ctrl-C.
HTTP ?= 127.0.0.1:8080
demo-console: say-demo $(CONSOLE)
	$(BIN)/python -m demo.run_console $(HTTP)

# A study by C-STORE, and its report back by C-STORE.
demo-dicom: say-demo $(NODE)
	$(BIN)/python -m demo.run_dicom

test: say-test setup $(if $(CI),debian)
	@echo "make test: the whole tests, some twenty minutes on two cores. make test-fast takes two."
	$(BIN)/python -m pytest $(PARALLEL)
	for backend in tensorrt cuda; do $(BIN)/python -m pytest $(PARALLEL) $(SERVED) --backend $$backend || exit 1; done

# The inner loop: the rooms that start few servers.
test-fast: say-test setup
	$(BIN)/python -m pytest $(FAST)

# The full counts of what `make test` samples, an hour or more; docs/test-long.md has the last results.
test-long: setup
	for backend in tensorrt cuda; do $(BIN)/python -m pytest tests/engine tests/serving --backend $$backend || exit 1; done
	$(MAKE) fuzz
	ECHOVLM_LONG=1 $(BIN)/python -m pytest tests/engine/test_drafting.py tests/serving/test_drafted_reports.py tests/evaluation/test_evaluation_run.py tests/dicom_node/test_kills.py tests/dicom_node/test_node_faults.py tests/dicom_node/test_hostile_peers.py tests/bundle/test_installed_bundles.py
	$(MAKE) test-native
	$(MAKE) soak
	$(MAKE) soak-dicom
	$(MAKE) release
	for processor in x86_64 aarch64; do $(MAKE) rehearse-release PROCESSOR=$$processor || exit 1; done

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

# On a computer with an NVIDIA GPU: whether it computes what a CPU does, and how fast, in eight minutes; what it saw is in build/gpu-check.
GPU_SM ?= $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d .)
GPU_NEEDED = test -n "$(GPU_SM)" || { echo "$@: nvidia-smi finds no GPU: install NVIDIA's driver, or give the GPU's compute capability, as GPU_SM=90." >&2; exit 2; }
gpu-check:
	@$(GPU_NEEDED)
	$(MAKE) $(VENV)/.gpu-$(GPU_SM)
	$(BIN)/python -m benchmarks.gpu_check $(CHECK)

# ONNX Runtime for GPUs in the place of the CPU's, whose files have the same names, and kernels for one compute capability.
$(VENV)/.gpu-%: $(SOURCES) $(wildcard plugins/dual_path_moe/cuda/*.py)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip uninstall --quiet --yes onnxruntime onnxruntime-gpu
	$(INSTALL) --no-deps kernel-lens
	$(INSTALL) --editable ".[serve-gpu,dev]" $(call kernels_for,ON,$*)
	touch $@

# For a computer with a GPU and neither a compiler nor a network: this package with kernels for GPU_SM, and small packages for its Python.
CARRY := build/gpu-carry
CARRY_PYTHON ?= 3.12
CARRY_PACKAGES := annotated-types dashscope googleapis-common-protos grpcio-health-checking grpcio-reflection nvidia-ml-py pydantic pydantic-core \
                  pydicom pylibjpeg typing-inspection
gpu-carry: setup
	@$(GPU_NEEDED)
	rm -rf $(CARRY)
	$(INSTALL) --no-deps --target $(CARRY) . $(call kernels_for,ON,$(GPU_SM))
	$(INSTALL) --no-deps --target $(CARRY) --only-binary=:all: --python-version $(CARRY_PYTHON) $(CARRY_PACKAGES)
	@du -sh $(CARRY)
	@echo "There: PYTHONSAFEPATH=1 PYTHONPATH=$(CARRY):. python3 -m benchmarks.gpu_check"

# Known faults of what is pinned; needs the advisories of the Python Package Index.
audit: setup
	$(BIN)/pip install --quiet --constraint constraints.txt "pip-audit>=2.7"
	$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict

# Coverage-guided fuzzing of what comes from outside: image files and messages.
CASES ?= 20000
fuzz: setup
	$(BIN)/pip install --quiet --constraint constraints.txt "atheris>=3"
	for target in png jpeg bmp tiff webp gif video dicom request chat form schema pattern; do $(BIN)/python -m tests.fuzz $$target --cases $(CASES) || exit 1; done

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p echovlm_edge -p benchmarks -p demo -p deploy

# The contract's style, and that its clients of the last release (without one: of main) still fit; needs npm.
BUF := build/buf/node_modules/.bin/buf
RELEASED = $(shell git describe --tags --abbrev=0 2>/dev/null || git rev-parse --verify --quiet main || git rev-parse --verify --quiet origin/main || echo HEAD)
buf: $(BUF)
	rm -rf build/buf/released && mkdir -p build/buf/released
	git archive $(RELEASED) proto | tar -x -C build/buf/released
	$(BUF) lint
	$(BUF) breaking proto --against build/buf/released/proto

$(BUF):
	npm install --silent --prefix build/buf @bufbuild/buf@1.75.0

# The source archive, and a wheel from it, into dist/.
sdist: setup
	rm -rf dist
	$(BIN)/python -c "from scikit_build_core.build import build_sdist; build_sdist('dist')"
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist dist/*.tar.gz

# A release of the last commit into dist/: source, wheels for x86-64 and aarch64, SBOM, checksums; SIGN names a secret key of minisign.
release: setup
	rm -rf dist
	$(BIN)/python -m deploy.release --output dist $(if $(SIGN),--sign $(SIGN))

# An installation from dist/ and a wheelhouse in an empty root of Debian without a network; EXTRAS as `demo` adds PyTorch, docs/release.md has the rest.
PROCESSOR ?= $(shell uname -m)
EXTRAS ?=
rehearse-release: setup
	test -d bundles/demo || $(BIN)/echovlm-build --checkpoint demo/checkpoint --output bundles/demo
	test -d dist || $(MAKE) release
	$(BIN)/python -m deploy.rehearsal dist --processor $(PROCESSOR) $(foreach extra,$(EXTRAS),--extra $(extra)) $(REHEARSAL)

# Every benchmark of some minutes into build/bench.json, and docs/performance.md from it.
bench: setup
	$(BIN)/python -m benchmarks.bench --json build/bench.json
	$(BIN)/python -m benchmarks.performance build/bench.json

# The published size from checkpoint to service: some 45 GB of disk in build/full, half an hour. FAMILY=qwen2_5_vl is EchoVLM V2.
FAMILY ?= echovlm
bench-full: setup
	$(BIN)/python -m benchmarks.full --family $(FAMILY)

# What drafting saves, at the published width: 7 GB of disk in build, minutes; LAYERS=4 takes 1.3 GB. CAPTIONS names files of reports, as for --phrases.
CAPTIONS ?=
LAYERS ?= 28
bench-drafting: setup
	$(BIN)/python -m benchmarks.drafting --layers $(LAYERS) $(if $(CAPTIONS),--captions $(CAPTIONS))

# Our bundle, llama.cpp and OpenVINO GenAI on the same random weights, four layers or LAYERS=28: see docs/performance-peers.md. The others are installed and
# compiled into build/peers, half an hour and 12 GB the first time.
bench-peers: LAYERS = 4
bench-peers: setup
	$(BIN)/python -m benchmarks.peers --layers $(LAYERS)

# Sixteen clients at once on the demo's bundle; figures also in soak.json.
MINUTES ?= 10
soak: setup
	test -d bundles/demo || $(BIN)/echovlm-build --checkpoint demo/checkpoint --output bundles/demo
	$(BIN)/python -m benchmarks.soak --minutes $(MINUTES)

# Sixteen carts at once on a DICOM node and the demo's bundle.
soak-dicom: setup
	test -d bundles/demo || $(BIN)/echovlm-build --checkpoint demo/checkpoint --output bundles/demo
	$(BIN)/python -m benchmarks.soak.dicom --minutes $(MINUTES)

clean:
	rm -rf build bundles .mypy_cache .pytest_cache .ruff_cache .hypothesis
