# `make demo` runs the main job on your own computer; `make test` passes the tests.
# Both need Python 3.10 to 3.13 with venv, and a package index. In China: make demo INDEX=https://mirrors.aliyun.com/pypi/simple/
PYTHON ?= python3
INDEX  ?=
BIN    := .venv/bin

.PHONY: demo test check docs bench constraints clean

demo: .venv/ready
	$(BIN)/orchestrate launch --name demo --provider local --yes

test: .venv/ready
	$(BIN)/python -m pytest

check: .venv/ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

docs: .venv/ready
	$(BIN)/python -m orchestrator.clidocs > docs/cli.md

bench: .venv/ready
	for program in benchmarks/*.py; do echo "== $$program"; $(BIN)/python $$program || exit 1; done

# The environment: uv first (its hash is checked by pip), then everything else by uv, each wheel against its hash.
.venv/ready: pyproject.toml constraints.txt
	@echo "== 1/3 making .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || \
	  { echo "Python 3.10 to 3.13 is needed. Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv .venv || { echo "Python's venv module is missing. On Ubuntu or Debian: apt install python3-venv"; exit 1; }
	@echo "== 2/3 installing uv, the installer"
	@sed -n '/^uv==/,/[^\\]$$/p' constraints.txt > .venv/uv.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes $(if $(INDEX),--index-url $(INDEX)) -r .venv/uv.txt
	@echo "== 3/3 installing the project and PyTorch (5.4 GB on Linux, about a minute on a fast line)"
	@UV_LINK_MODE=$${UV_LINK_MODE:-hardlink} $(BIN)/uv pip install --python .venv/bin/python $(if $(INDEX),--default-index $(INDEX)) -c constraints.txt -e '.[trainer,dev]'
	@touch $@

# Pin anew what pyproject.toml allows. The file names no index.
constraints: .venv/ready
	echo uv | $(BIN)/uv pip compile --universal --generate-hashes --upgrade --python-version 3.10 --no-header --quiet \
	  --extra trainer --extra dev pyproject.toml - -o constraints.txt

clean:
	rm -rf .venv
