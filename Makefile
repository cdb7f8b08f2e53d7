# Rensei's commands. `make help` lists them.

.DEFAULT_GOAL := help
SHELL := /bin/sh
PORT ?= 8000
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
CLIENTS := $(VENV)/clients
# Those of Python have environments of their own, which share nothing with Rensei's.
CLIENTS_NEEDED := $(patsubst %,$(CLIENTS)/%/.installed,libraries llm $(if $(ALL),heavy node-heavy))
CLIENTS_NEEDED += $(CLIENTS)/schema/.installed $(CLIENTS)/schema-python/.installed
CLIENT_TESTS := tests/core/test_generated_clients.py tests/gateway/test_other_clients.py $(if $(ALL),tests/gateway/heavy_clients.py)
# Sandboxes need bubblewrap.
CLIENT_TESTS += $(if $(shell command -v bwrap),tests/gateway/test_claude_code.py)

.PHONY: help
help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  PORT=8100 moves the server (and the demo's simulator to the port after it)."
	@echo "  PYTHON=/path/to/python3 chooses the Python that .venv is made with."

.PHONY: demo
demo: $(INSTALLED) ## Start a demo with its own data and a simulated provider; Ctrl-C stops it
	@$(BIN)/python manage.py start --demo --port $(PORT)

.PHONY: run
run: $(INSTALLED) ## Start Rensei for real on this machine; Ctrl-C stops it
	@$(BIN)/python manage.py start --port $(PORT)

.PHONY: install
install: $(INSTALLED) ## Make .venv with the locked dependencies

.PHONY: test
test: $(INSTALLED_DEV) ## Run the tests on SQLite and, where it is installed, on PostgreSQL
	@$(BIN)/python -m tests.run

.PHONY: clients
clients: programs ## Send real clients, those made from the OpenAPI document too; ALL=1 sends the heavy ones
	@env -u RENSEI_DATA_DIR RENSEI_REQUIRE_ALL=1 $(BIN)/python -m pytest -q $(CLIENT_TESTS)

.PHONY: programs
programs: $(INSTALLED_DEV) $(CLIENTS)/.installed $(CLIENTS_NEEDED) ## Install the clients that `make clients` sends

.PHONY: container
container: $(INSTALLED_DEV) ## Build the image, and run every process of compose.yaml from it; needs root and buildah
	@$(BIN)/python -m tests.container

.PHONY: chaos
chaos: $(INSTALLED_DEV) ## Kill workers, the database and the broker under load for an hour or more, on both databases
	@$(BIN)/python -m tests.chaos --runs 10000 --kills 1000 --database sqlite $(if $(SEED),--seed $(SEED))
	@$(BIN)/python -m tests.chaos --runs 10000 --kills 1000 --database postgres --celery $(if $(SEED),--seed $(SEED))
	@$(BIN)/python -m tests.chaos.rotation --orgs 100000 --kills 50 --database sqlite
	@$(BIN)/python -m tests.chaos.rotation --orgs 100000 --kills 50 --database postgres

.PHONY: attack
attack: $(INSTALLED_DEV) ## Attack this machine's own Rensei with what would exhaust it, at full size
	@env -u RENSEI_DATA_DIR ATTACK=1 $(BIN)/python -m pytest -m attack --timeout=900 -rs --durations=20

.PHONY: bench
bench: $(INSTALLED_DEV) ## Measure Rensei beside LiteLLM, Portkey and a bare pass-through, and write docs/benchmarks.md
	@$(BIN)/python -m tests.benchmarks $(if $(QUICK),--quick) $(if $(SEED),--seed $(SEED))

.PHONY: screenshots
screenshots: $(INSTALLED_DEV) ## Take the pictures of the documentation anew, from a demo of their own
	@$(BIN)/python -m tests.screenshots

# The checks look at a production installation, not at whatever this checkout is configured as.
check: export RENSEI_PUBLIC_URL := https://rensei.example
check: export DATABASE_URL := sqlite://:memory:
check: export SECRET_KEY := made-up-for-the-checks-and-never-used-to-sign-anything

.PHONY: check
check: $(INSTALLED_DEV) ## Check format, lint, templates, types, layers, migrations and the production settings
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/djlint --lint --quiet templates
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python manage.py makemigrations --check --dry-run
	$(BIN)/python manage.py check --deploy --fail-level WARNING

.PHONY: lock
lock: $(INSTALLED_DEV) ## Write the newest allowed versions into the lock files
	$(BIN)/uv pip compile $(LOCK) --extra full --extra server --output-file requirements.txt pyproject.toml
	$(BIN)/uv pip compile $(LOCK) --all-extras --output-file requirements-key-services.txt pyproject.toml
	$(BIN)/uv pip compile $(LOCK) --all-extras --output-file requirements-dev.txt pyproject.toml --group dev
	$(BIN)/uv pip compile $(LOCK) --output-file requirements-build.txt --group build

# One lock for every system and for Python 3.11 and newer, without the address that it was made from.
LOCK := --upgrade --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --quiet

# The stamps are newer than the locks they were installed from, so that a second start skips pip.
$(INSTALLED): requirements.txt
	@found=; \
	for python in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11 python; do \
		if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
		echo "Rensei needs Python 3.11 or newer, and none is here. Install one, or name it with PYTHON=/path/to/python3." >&2; \
		exit 1; \
	fi; \
	if ! $$found -c 'import venv, ensurepip' 2>/dev/null; then \
		version=$$($$found -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
		echo "This Python lacks its venv module. On Debian and Ubuntu: apt-get install python$$version-venv" >&2; \
		exit 1; \
	fi; \
	echo "Making $(VENV) with $$($$found --version) and the locked dependencies. This happens once." && \
	$$found -m venv $(VENV)
	@$(BIN)/python -m pip install $(PIP_OPTIONS) -r requirements.txt
	@$(BIN)/python -m rensei.cli.install
	@touch $@

$(INSTALLED_DEV): requirements-dev.txt $(INSTALLED)
	@echo "Adding the tools for tests and checks."
	@$(BIN)/python -m pip install $(PIP_OPTIONS) -r requirements-dev.txt
	@touch $@

# Their versions are pinned in the package files. Each stamp is newer than its file.
$(CLIENTS)/.installed: tests/gateway/clients/package.json tests/gateway/clients/package-lock.json
	$(call install_from_npm,ci,$(CLIENTS),$^)
	@touch $@

# It has no lock: opencode names its programs for each system, and npm writes down only those that it finds.
$(CLIENTS)/node-heavy/.installed: tests/gateway/clients/heavy/package.json
	$(call install_from_npm,install --no-package-lock,$(CLIENTS)/node-heavy,$^)
	@touch $@

$(CLIENTS)/schema/.installed: tests/core/clients/package.json tests/core/clients/package-lock.json
	$(call install_from_npm,ci,$(CLIENTS)/schema,$^)
	@touch $@

$(CLIENTS)/schema-python/.installed: tests/core/clients/schema-python.txt | $(INSTALLED_DEV)
	$(call install_from_pypi,$(CLIENTS)/schema-python,$<)
	@touch $@

# With the Python of .venv, which has to be there, however many jobs run at the same time.
$(CLIENTS)/%/.installed: tests/gateway/clients/%.txt | $(INSTALLED_DEV)
	$(call install_from_pypi,$(CLIENTS)/$*,$<)
	@touch $@

define install_from_pypi
	@echo "Installing the clients of $(2) from PyPI. This happens once."
	@$(BIN)/python -m venv --clear $(1)
	@$(1)/bin/python -m pip install $(PIP_OPTIONS) -r $(2)
endef

define install_from_npm
	@command -v npm >/dev/null || { echo "This needs npm, and it is not installed." >&2; exit 1; }
	@echo "Installing the clients of $(firstword $(3)) from the npm registry. This happens once."
	@mkdir -p $(2) && cp $(3) $(2)/
	@(cd $(2) && npm $(1) --silent --no-fund --no-audit) || \
		{ echo "npm could not install them. This needs the network once; see the messages above." >&2; exit 1; }
endef

PIP_OPTIONS := --quiet --quiet --disable-pip-version-check --require-hashes --no-deps
