# `make demo` runs the main job on your own computer; `make test` passes the tests.
# Both need Python 3.10 to 3.13 with venv, and a package index. In China: make demo INDEX=https://mirrors.aliyun.com/pypi/simple/
PYTHON ?= python3
INDEX  ?=
BIN    := .venv/bin
INSTALL = $(BIN)/uv pip install --python $(BIN)/python $(if $(INDEX),--default-index $(INDEX)) -c constraints.txt -e
EVERYTHING := trainer,deploy,explain,private,caffe,tensorflow,tune,bucket,aliyun,tencent,huawei,dev

.PHONY: demo test engine check docs bench constraints clean

demo: .venv/demo
	$(BIN)/orchestrate launch --name demo --provider local --yes

# Three tests at once, on two cores too: many of them wait for machines and engines. In the files' order, which has the
# longest first. What failed is shown, and run once more with nothing beside it: what fails again is the end.
test: .venv/test engine
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder || { [ $$? = 1 ] && \
	  echo "== what failed, once more, one after the other" && $(BIN)/python -m pytest --last-failed --last-failed-no-failures none; }

# The Pulumi engine: found, or fetched, or built from source (8 minutes, once a machine), into the user's cache.
engine: .venv/test
	@$(BIN)/python -m infra.engine

check: .venv/test
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

docs: .venv/test
	$(BIN)/python -m orchestrator.clidocs > docs/cli.md

bench: .venv/test
	for program in benchmarks/*.py; do echo "== $$program"; $(BIN)/python $$program || exit 1; done

# The environment: uv first (pip checks its hash), then all else by uv, each wheel against its hash.
.venv/uv: constraints.txt
	@echo "== making .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || \
	  { echo "Python 3.10 to 3.13 is needed. Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv .venv || { echo "Python's venv module is missing. On Ubuntu or Debian: apt install python3-venv"; exit 1; }
	@echo "== installing uv, the installer"
	@sed -n '/^uv==/,/[^\\]$$/p' constraints.txt > .venv/uv.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes $(if $(INDEX),--index-url $(INDEX)) -r .venv/uv.txt
	@touch $@

.venv/demo: .venv/uv pyproject.toml
	@echo "== installing the project and PyTorch (5.4 GB on Linux; about a minute on a fast line)"
	@$(INSTALL) '.[trainer]' && touch $@

.venv/test: .venv/uv pyproject.toml
	@echo "== installing the project, PyTorch, the clouds' SDKs and the tests' tools (7 GB on Linux)"
	@$(INSTALL) '.[$(EVERYTHING)]' && touch $@ .venv/demo

# Pin anew what pyproject.toml allows. The file names no index.
constraints: .venv/uv
	echo uv | $(BIN)/uv pip compile --universal --generate-hashes --upgrade --python-version 3.10 --no-header --quiet \
	  --all-extras pyproject.toml - -o constraints.txt

clean:
	rm -rf .venv
