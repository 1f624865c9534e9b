# The two commands of the README are `make repro` and `make test`; `make help` lists all.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The name contains a checksum of the installed requirements and of the folder: if either changes, so does the stamp. The
# stamp is written last, so an interrupted installation is run again.
STAMP := $(VENV)/installed-$(shell (cat requirements.lock pyproject.toml; echo '$(CURDIR)') | cksum | cut -d ' ' -f 1)

export PATH := $(CURDIR)/$(BIN):$(PATH)
# No usage statistics (DVC: .dvc/config; Prefect: prefect.toml).
export DO_NOT_TRACK := 1
export RAY_USAGE_STATS_ENABLED := 0
export HF_HUB_DISABLE_TELEMETRY := 1

.DEFAULT_GOAL := help
.PHONY: help install repro serve drift-ui test test-slow lint docs bench gpu flows

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s  %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

# The commands in an environment contain the path of the folder in which it was made. In a project that was moved or copied
# they are broken, or they run the code of the other folder. Such an environment is deleted and made again.
$(STAMP):
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v in ((3, 11), (3, 12)) or sys.exit("make: need Python 3.11 or 3.12, got %d.%d. Run make PYTHON=/path/to/python3.11." % v)'
	@grep -qsF '$(CURDIR)/$(VENV)' $(VENV)/pyvenv.cfg || rm -rf $(VENV)
	@rm -f $(VENV)/installed-*
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

install: $(STAMP)  ## Create .venv from requirements.lock (every other target does this where needed)

# In a downloaded archive there is no git: DVC is told to do without it, on this machine only. `dvc exp` needs git.
.PHONY: git
git:
	@git rev-parse --git-dir >/dev/null 2>&1 || test -e .git || grep -qs no_scm .dvc/config.local || { \
		mkdir -p .dvc; printf '[core]\n    no_scm = true\n' >> .dvc/config.local; \
		echo "note: no git repository here, so DVC works without one (.dvc/config.local). Delete that file after git init." >&2; }

repro: git $(STAMP)  ## Run the whole pipeline: data, training, evaluation, index, drift report
	dvc repro

serve: $(STAMP)  ## Show the search page on 127.0.0.1 (PORT=8000; Ctrl-C stops)
	hcmi serve $(if $(PORT),--port $(PORT))

drift-ui: $(STAMP)  ## Open all drift reports in Evidently on 127.0.0.1 (PORT=8000; Ctrl-C stops)
	python -m hcmi.drift.workspace $(if $(PORT),--port $(PORT))

test: $(STAMP)  ## Run the tests
	pytest -n 2 --dist loadfile

test-slow: $(STAMP)  ## Run the tests that take minutes as well
	pytest -m 'slow or not slow'

lint: $(STAMP)  ## Check style and types
	ruff check .
	mypy

docs: $(STAMP)  ## Bring docs/cli.md and the table of stages up to date with the code
	python docs/generate.py

# modules that the scripts share
BENCH_HELPERS := card common drift_clips kernel panels runs step

bench: $(STAMP)  ## Measure every figure (BENCH=name for one, QUICK=--quick for smaller runs, KEEP=1 to replace results)
	@for script in $(if $(BENCH),benchmarks/$(BENCH).py,$(filter-out $(BENCH_HELPERS:%=benchmarks/%.py),$(wildcard benchmarks/*.py))); do \
		echo "== $$script"; python $$script $(QUICK) || exit 1; done

gpu: $(STAMP)  ## Measure and test what needs a GPU, in less than ten minutes
	bash benchmarks/gpu_all.sh

flows: $(STAMP)  ## Start a Prefect server and worker on 127.0.0.1 and deploy the flows (PORT=4200; Ctrl-C stops)
	python -m flows.up $(if $(PORT),--port $(PORT)) $(if $(GPUS),--gpus $(GPUS))
