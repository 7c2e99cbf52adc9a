# make demo   the main job on real photos, or on your own:  make demo IMAGES=/path/to/folder-per-class
# make test   the test suite
# make test-all  the same, with the long form of proofs that `make test` holds in short
# make test-oldest, make test-newest   engines, a render and a pretraining with the oldest, the newest versions that pyproject.toml admits
# make check  formatter, linter, type checker
# make bench  speed beside what people would use instead, on photos of yours:  make bench IMAGES=/path/to/folder
# make gpu-check   what a GPU is wanted for once, in eight minutes; without one, what can be done without
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt
# pip compiles on one core, this on all; where Python may not write bytecode, each process would compile anew what it imports.
# Some packages carry templates named .py that cannot be compiled.
COMPILE := $(BIN)/python -m compileall -qq -j 0 .venv/lib pseudolabel pipeline trainers cluster || true

VERSIONS_TESTED := tests/pipeline/engines tests/pipeline/recipe tests/pipeline/materialize/test_once.py tests/trainers/test_rendered.py \
	tests/trainers/test_pretraining.py::test_a_run_leaves_weights_results_and_logs

.PHONY: demo test test-all test-oldest test-newest check bench gpu-check format clean

demo: .venv/demo
	rm -rf runs/demo
	$(BIN)/python recipes/demo_photos.py runs/demo/photos "$(IMAGES)"
	$(BIN)/pseudolabel pack runs/demo/photos/train runs/demo/shards/train
	$(BIN)/pseudolabel pack runs/demo/photos/test runs/demo/shards/test
	$(BIN)/pseudolabel preview recipes/demo.yaml -o runs/demo/preview.png
	$(BIN)/pseudolabel pretrain recipes/demo.yaml
	$(BIN)/pseudolabel evaluate recipes/demo.yaml
	$(BIN)/pseudolabel finetune recipes/demo.yaml
	@echo "The report: runs/demo/report.html and runs/demo/report.json"

test: .venv/dev
	$(BIN)/pytest --numprocesses 2 --dist loadgroup --durations 20

test-all: .venv/dev
	$(BIN)/pytest --numprocesses 2 --dist loadgroup --durations 20 -m ""

# In an environment of its own; uv picks the versions. The oldest are those of what pyproject.toml names.
test-oldest: RESOLUTION := lowest-direct
test-newest: RESOLUTION := highest
test-oldest test-newest: .venv/base
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-versions
	$(BIN)/uv pip install --quiet --python .venv-versions --resolution $(RESOLUTION) --editable ".[dev]"
	.venv-versions/bin/pytest $(VERSIONS_TESTED)
	rm -rf .venv-versions

check: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: .venv/bench
	@test -n "$(IMAGES)" || (echo "make bench IMAGES=/path/to/folder-or-tar-of-jpegs"; exit 2)
	$(BIN)/python -m benchmarks "$(IMAGES)" --out runs/bench

gpu-check: .venv/dev
	$(BIN)/python -m benchmarks.gpu_check --out runs/gpu-check

format: .venv/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv runs .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/base:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'pseudolabel needs Python 3.11 or newer; set PYTHON=')"
	$(PYTHON) -m venv .venv
	$(INSTALL) --upgrade pip
	touch $@

# Daft admits no pyarrow newer than 25, and runs with 26: so it is installed without what it asks for.
.venv/demo .venv/bench .venv/dev: .venv/base pyproject.toml constraints.txt
	$(INSTALL) --editable ".[$(@F)]"
	$(if $(filter %bench,$@),$(INSTALL) tqdm && $(INSTALL) --no-deps daft)
	$(COMPILE)
	touch $@
