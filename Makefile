# The two commands are `make run` and `make test`; the others are their parts.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8501
# The extra index in requirements.txt may be out of reach behind a firewall; then pip must not try it again for each package.
PIP := PIP_RETRIES=1 PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --progress-bar on

.PHONY: run setup test test-all check docs-check image-check audit peers bench clean
.DELETE_ON_ERROR:

run: $(VENV)/.runs
	@$(BIN)/python -m backend models fetch base > /dev/null || echo "Serving stored answers only; the page offers to fetch the model again."
	@PORT=$(PORT) $(BIN)/python serve.py

setup: $(VENV)/.runs
	@$(BIN)/python -m backend models fetch base > /dev/null

# Files of tests side by side, each process with one thread: several with all threads would slow each other down many times over. Three of them, because half of
# the time browsers are waited for.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile

test: $(VENV)/.tests setup
	$(PYTEST) -m "not extended"

test-all: $(VENV)/.tests setup
	$(PYTEST)

check: $(VENV)/.tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not slow and not browser"

# Commands, links and paths of README, CONTRIBUTING and docs; the commands are run but for those whose block says why not.
docs-check: $(VENV)/.tests setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_docs.py

# The Dockerfile's steps in a clean folder as a user without rights, and what it then serves.
image-check: $(VENV)/.tests setup
	$(BIN)/python -m pytest -s tests/browser/test_image.py

# Known faults of the packages that the image installs: those of the lock, and torch, which is not in it. A package that cannot be asked about fails, too.
audit: .audit/.ready
	@grep "^torch==" constraints.txt > .audit/torch.txt
	@.audit/bin/pip-audit --strict --disable-pip --no-deps --progress-spinner off -r requirements.lock -r .audit/torch.txt > .audit/told 2>&1; found=$$?; \
	if [ $$found = 0 ] || grep -q "known vulnerabilit" .audit/told; then grep -v "^WARNING" .audit/told; \
	else tail -n 1 .audit/told; echo "PyPI's advisories cannot be asked for from here, so nothing is known. Run make audit where they can be reached."; fi; exit $$found

.audit/.ready: Makefile
	@$(PYTHON) -m venv .audit
	@PIP_RETRIES=1 PIP_DISABLE_PIP_VERSION_CHECK=1 .audit/bin/python -m pip install --quiet pip-audit==2.10.1
	@touch $@

# The tools that the benchmark measures against, in an environment of their own.
peers: .peers/.ready

.peers/.ready: requirements-peers.txt
	@$(PYTHON) -m venv .peers
	@PIP_RETRIES=1 PIP_DISABLE_PIP_VERSION_CHECK=1 .peers/bin/python -m pip install -r requirements-peers.txt
	@touch $@

bench: $(VENV)/.tests setup peers
	$(BIN)/python -m backend bench generate --save
	$(BIN)/python -m backend bench judging --save
	$(BIN)/python -m backend bench capture --save
	$(BIN)/python -m backend bench steer --save
	$(BIN)/python -m backend bench realign --rounds 3 --save
	$(BIN)/python -m backend bench pages --save

clean:
	rm -rf $(VENV) .audit .peers .pytest_cache .ruff_cache .mypy_cache .hypothesis test-artifacts
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "PersonaScope needs Python 3.11 or newer. Install it, or name it: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "The virtual environment could not be made. On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }

$(VENV)/.runs: requirements.txt constraints.txt | $(VENV)/bin/python
	@echo "Installing packages (about 400 MB, once; a few minutes)."
	@$(PIP) -r requirements.txt || { echo "The packages could not be installed. Check the network and free space (2 GB), then run the same command again."; exit 1; }
	@touch $@

# Chromium: the system's if there is one, else Playwright's own; if neither can be had the browser tests say so.
$(VENV)/.tests: requirements-dev.txt $(VENV)/.runs
	@echo "Installing what the tests need."
	@$(PIP) -r requirements-dev.txt || { echo "The test packages could not be installed. Check the network, then run the same command again."; exit 1; }
	@command -v chromium chromium-browser google-chrome > /dev/null || $(BIN)/playwright install chromium || true
	@touch $@
