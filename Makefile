# Everything runs in .venv, which the first target makes. Only python3 (>= 3.11), pip and make are needed.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# Where this Python keeps its standard library: real text that every machine has.
STDLIB = $(shell $(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
QUICKSTART_SOURCE = source.path='[$(foreach package,asyncio concurrent email http json logging urllib,$(STDLIB)/$(package)/**/*.py$(comma))]'
QUICKSTART_SET = sets.0.path='[$(STDLIB)/*.py$(comma) $(STDLIB)/*/*.py]'
comma := ,

.PHONY: quickstart quickstart-train test test-all check bench clean

quickstart: $(INSTALLED)          ## embed the Python standard library's sources with a real model, index and search them
	@for job in plan embed verify; do \
	  echo; echo "== python -m jobs $$job configs/embed/quickstart.yaml"; \
	  $(BIN)/python -m jobs $$job configs/embed/quickstart.yaml $(QUICKSTART_SOURCE) || exit $$?; \
	done
	@echo; echo "== python -m jobs index configs/index/quickstart.yaml"; \
	$(BIN)/python -m jobs index configs/index/quickstart.yaml
	@for query in "parse dates in email headers" "run blocking code in a thread of the event loop" \
	  "percent-encode special characters of a URL"; do \
	  echo; echo "== python -m jobs search out/quickstart-index query='$$query' k=5"; \
	  $(BIN)/python -m jobs search out/quickstart-index query="$$query" k=5 || exit $$?; \
	done

quickstart-train: $(INSTALLED)    ## train that model further on those sources, and distil it into one of half its layers
	@for job in train distill; do \
	  echo; echo "== python -m jobs $$job configs/$$job/quickstart.yaml"; \
	  $(BIN)/python -m jobs $$job configs/$$job/quickstart.yaml $(QUICKSTART_SET) || exit $$?; \
	done

test: $(INSTALLED) check          ## all checks, then the quick tests: those that need no Ray on both cores
	$(BIN)/python -m pytest -q -m "not slow" -n 2 --dist worksteal tests/operators
	$(BIN)/python -m pytest -q -m "not slow" tests/cluster tests/jobs

test-all: $(INSTALLED) check      ## the slow ones too: kills, faults, clusters
	$(BIN)/python -m pytest -q

check: $(INSTALLED)               ## lint, format, types, import arrows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(INSTALLED)               ## speed, side by side with the peer
	$(BIN)/python -m benchmarks.engine
	$(BIN)/python -m benchmarks.pipeline
	$(BIN)/python -m benchmarks.index
	$(BIN)/python -m benchmarks.index_update

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[cpu,quickstart,evaluate,dev]"
	touch $@

clean:
	rm -rf .venv out
