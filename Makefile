# `make demo` and `make test` set up what they need in .venv and run; so do `make bench`, `docs`, `lint`, `light` and `sanitize`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# On aarch64 the newest PyTorch comes with several GB of CUDA; this pair is a small CPU build.
TORCH_aarch64 := torch==2.9.1 torchvision==0.24.1
TORCH := $(TORCH_$(shell uname -m))

.PHONY: demo test fuzz judges bench docs lint light sanitize wheels check-wheels clean

demo: $(VENV)/demo.stamp
	$(BIN)/amn-fast demo

test: $(VENV)/test.stamp
	$(BIN)/python -m pytest -n auto --dist worksteal

# Random cases against the references, for SECONDS, from SEED if it is given: make fuzz SECONDS=60 SEED=0
SECONDS := 600
fuzz: $(VENV)/test.stamp
	$(BIN)/python tests/fuzz --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

# The labelling tools whose own code the tests of export and import ask; their pins need an environment of their own.
# Ultralytics runs in the tests' environment, which has its PyTorch.
ULTRALYTICS := ultralytics==8.4.190
judges: $(VENV)-judges/stamp
$(VENV)-judges/stamp: tests/review/judges.txt
	rm -rf $(VENV)-judges
	$(PYTHON) -m venv $(VENV)-judges
	$(VENV)-judges/bin/python -m pip install --quiet --requirement $<
	$(VENV)-judges/bin/python -m pip install --quiet --no-deps --target $(VENV)-judges/ultralytics $(ULTRALYTICS)
	touch $@

# make bench PROFILE=--quick or --full
bench: $(VENV)/bench.stamp
	$(BIN)/python -m pytest benchmarks $(PROFILE)

lint: $(VENV)/lint.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(shell find kernels tests -name '*.[ch]pp' -o -name '*.cu')
	$(BIN)/mypy

# The documentation, in site/; a warning or a broken link fails.
docs: $(VENV)/docs.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# The base install, without PyTorch, on any Python: make light PYTHON=python3.13
light:
	rm -rf $(VENV)-light
	$(PYTHON) -m venv $(VENV)-light
	$(VENV)-light/bin/python -m pip install --quiet --editable '.[test]'
	$(VENV)-light/bin/python tests/light.py -n auto

# AddressSanitizer, UBSan and ThreadSanitizer over recorded and random problems; needs g++ or clang++.
sanitize: $(VENV)/test.stamp
	$(BIN)/python tests/sanitize/run_dense_crf.py
	$(BIN)/python tests/sanitize/run_dense_crf_gpu.py

# Wheels for every CPython found, x86-64 and arm64, and the sdist; then each is installed and tested. See tools/.
wheels: $(VENV)/wheels.stamp
	$(BIN)/python tools/build_wheels.py --out dist

check-wheels: $(VENV)/wheels.stamp
	$(BIN)/python tools/check_wheels.py dist

clean:
	rm -rf $(VENV) $(VENV)-light $(VENV)-judges build dist site *.egg-info runs kernels/_native*.so

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# One environment for all; each target adds its extras. The package itself is installed editable.
$(VENV)/demo.stamp: EXTRAS = pipeline,demo
$(VENV)/test.stamp: EXTRAS = pipeline,demo,label,ray,test,gpu
$(VENV)/bench.stamp: EXTRAS = pipeline,demo,bench
$(VENV)/wheels.stamp: EXTRAS = wheels
$(VENV)/lint.stamp: EXTRAS = pipeline,lint
$(VENV)/docs.stamp: EXTRAS = pipeline,docs
$(VENV)/%.stamp: pyproject.toml setup.py $(wildcard kernels/*.[ch]pp kernels/*/*.[ch]pp) | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(TORCH) --editable '.[$(EXTRAS)]'
	touch $@
