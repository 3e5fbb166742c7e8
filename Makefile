# Needs nothing but Python 3.11 or newer. `make demo` and `make test` make .venv when it is missing.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
CORE   := $(VENV)/.rollforce-core
DEV    := $(VENV)/.rollforce-dev
DOCS   := $(VENV)/.rollforce-docs
PROMPT ?= a red ball bounces over green hills

.PHONY: demo test docs train-smoke lint format clean distclean help

help:
	@echo "make demo    install if needed, then render 20 s from a prompt into ball.mp4 (PROMPT='...' for another)"
	@echo "make test    install if needed, then ruff, mypy and pytest"
	@echo "make train-smoke    all stages of training for a few steps, then a video from the result"
	@echo "make docs    install if needed, then the API pages from the docstrings, into build/api"
	@echo "make lint    ruff and mypy only        make format   let ruff fix what it can"
	@echo "make clean   remove caches and the demo's output"

# A plain `pip install torch` may fetch gigabytes of CUDA, and a package that depends on torch would do it silently.
# So torch comes first, by name: replace this line's version or index to get the build for your GPU.
$(CORE): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "rollforce needs Python 3.11 or newer; set one: make PYTHON=/path/to/python3.11 ..."; exit 3; }
	@echo "installing into $(VENV): minutes the first time, for torch is large; what pip fetches is listed here"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check "torch==2.13.0"
	$(BIN)/python -m pip install --disable-pip-version-check -e .
	@touch $@

$(DEV): $(CORE)
	@echo "installing what tests and training need"
	$(BIN)/python -m pip install --disable-pip-version-check -e ".[dev,train]"
	@touch $@

$(VENV): $(DEV)

demo: $(CORE)
	$(BIN)/rollforce render "$(PROMPT)" --seconds 20 --seed 0 -o ball.mp4 --overwrite

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(DEV)
	$(BIN)/ruff check --fix .

# A process for each core and a thread for each process: the tests' arrays are small.
test: $(DEV)
	$(BIN)/ruff check .
	OMP_NUM_THREADS=1 $(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --dist worksteal

$(DOCS): $(DEV)
	@echo "installing what the API pages need"
	$(BIN)/python -m pip install --disable-pip-version-check -e ".[docs]"
	@touch $@

docs: $(DOCS)
	OMP_NUM_THREADS=1 $(BIN)/python docs/api.py

# Every stage of training for a few steps, then a video: minutes, on any machine.
train-smoke: $(DEV)
	rm -rf runs/smoke
	OMP_NUM_THREADS=1 $(BIN)/python train/tiny.py --out runs/smoke --smoke

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info ball.mp4 ball.json ball.resume.*
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf

distclean: clean
	rm -rf $(VENV)
