# make demo | test | test-ray | test-web | test-large | lint | bench: each makes .venv and installs what it needs. Python 3.11 or newer, pip and make are enough.
PYTHON ?= python3
BIN := .venv/bin
# Without an NVIDIA GPU, the CPU build of torch in the version that is tested. With one, the version whose Triton is the
# one that the tests install; otherwise pip would replace its Triton with one that torch.compile does not support.
TORCH ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo "torch==2.11.*" || echo "torch==2.13.0")

BUDGET ?= 9

.PHONY: demo test test-ray test-web test-large lint bench gpu gpu-train

demo: .venv/installed
	$(BIN)/python demo.py

test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

# The example on a Ray cluster of this machine. Ray is a download of about 140 MB.
test-ray: .venv/installed
	$(BIN)/python -m pip install --quiet --editable ".[ray]"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m ray -rs -o timeout=0 tests/test_ray.py

# The page of lmfn web in a real browser: needs Chromium (apt-get install chromium) and, the first time, the npm registry.
test-web: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/web -m browser

# Peak memory and its estimate at 12 to 100 megapixels with the default network, in ten minutes.
test-large: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m large -o timeout=0 tests/test_strips.py

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# Everything that can be measured on this CPU, in about BUDGET minutes, then the tables and plots of docs/benchmarks.md.
bench: .venv/installed
	$(BIN)/python -m bench all --device cpu --minutes $(BUDGET); status=$$?; $(BIN)/python -m bench report && exit $$status

# On a machine with a GPU and its own PyTorch, Triton, einops, NumPy and pytest; nothing is installed. Tests, benchmarks and
# tuning in at most BUDGET minutes; rows, log and summary are in OUT (default: bench/results/<gpu>) as they come.
gpu:
	$(PYTHON) -m bench all --device cuda --minutes $(BUDGET) $(if $(OUT),--out "$(OUT)")

# BUDGET minutes of a training run of STEPS steps on PACK, validated on VAL (files written by lmfn data pack). All output is
# in OUT/gpu, 15 MB per state; with that folder in place, the next BUDGET minutes continue from it. ARGS: options of train.py.
gpu-train:
	timeout --signal TERM --kill-after 60 $(BUDGET)m $(PYTHON) train.py --runs "$(or $(OUT),runs)" --name gpu --resume auto \
		--packs "$(PACK)" --val "$(VAL)" --steps $(or $(STEPS),100000) --precision bf16 --compact-states $(ARGS) \
		|| test $$? -eq 124

.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; try make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	# Nothing is compiled before it is imported: that is a third of it, and all of it would take a minute.
	$(BIN)/python -m pip install --quiet --no-compile "$(TORCH)"
	$(BIN)/python -m pip install --quiet --no-compile --editable ".[train,video,dev,bench]"
	# Without torchvision, which the CPU build of torch does not have; what we use of spandrel works without it.
	$(BIN)/python -m pip install --quiet --no-compile --no-deps "spandrel>=0.4"
	touch $@
