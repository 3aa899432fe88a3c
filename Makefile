PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(if $(shell command -v $(name)),$(name))))
VENV := .venv
BIN := $(VENV)/bin
DEMO := outputs/demo
ORACLE := ../shared/oracle

.PHONY: venv demo bench test test-faults test-slow soak parity fuzz check clean
.DEFAULT_GOAL := venv

venv: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: venv
	rm -rf $(DEMO)
	$(BIN)/python -m jobs.scenes output=$(DEMO)/scenes count=12
	$(BIN)/python -m jobs.edit input=$(DEMO)/scenes output=$(DEMO)/edited sheet=12
	@echo
	@echo "How many of them a reader of pixels calls right:"
	$(BIN)/python -m jobs.score benchmark=$(DEMO)/scenes edited=$(DEMO)/edited output=$(DEMO)/scores metrics="[scene]"
	@echo
	@echo "Edited Parquet: $(CURDIR)/$(DEMO)/edited/data"
	@echo "Picture sheet:  $(CURDIR)/$(DEMO)/edited/sheet.png"
	@echo
	@echo "The first twelve scenes of the test split, edited by the built-in model miniature; nothing is picked out."
	@echo "What it can and cannot do: vimaedit/miniature/weights/README.md."
	@echo "For photographs name a real model: model=stable-diffusion-v1-5/stable-diffusion-v1-5"

bench: venv
	$(BIN)/python -m tests.timing.$(SUITE) $(ARGS)

# Compiled once: hundreds of processes import the project, and where Python may write no bytecode each would compile it anew.
test: venv
	$(BIN)/python -m compileall -q jobs pipelines tests vimaedit
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not parity and not gpu and not faults and not fuzz and not slow"

parity: venv
	$(BIN)/python -m pytest tests/parity
	if [ -d $(ORACLE) ]; then $(BIN)/python -m tests.parity.replay --oracle $(ORACLE); fi

test-faults: venv
	$(BIN)/python -m pytest -m faults

test-slow: venv
	$(BIN)/python -m pytest -m slow

soak: venv
	$(BIN)/python -m tests.faults.soak $(SOAK)

fuzz: venv
	$(BIN)/python -m pytest -s tests/fuzz -m fuzz

check: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache outputs
