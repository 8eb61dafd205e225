# The commands of this project. Each sets up .venv first, which takes no time when it is current.
.DEFAULT_GOAL := help
PYTHON_IN_VENV := .venv/bin/python

# Container images set this, and then every start compiles every module again: three seconds instead of one.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help: ## Say what can be made
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

.PHONY: setup
setup: ## Make .venv complete and current; make setup PYTHON=/path/to/python chooses the interpreter
	@sh scripts/setup.sh

.PHONY: run
run: setup ## Start the application on a database of its own; PORT=8001 chooses the port, DATABASE_URL=… the database
	@$(PYTHON_IN_VENV) -m app.dev run

.PHONY: database
database: setup ## Start only the database of make run, for psql and the app commands
	@$(PYTHON_IN_VENV) -m app.dev database

.PHONY: test
test: setup ## Run the tests; ALL=1 the slow ones too, ARGS="-k login" hands arguments to pytest, COVERAGE=1 measures what they cover
	@$(PYTHON_IN_VENV) -m pytest $(if $(ALL),,-m "not slow") $(if $(COVERAGE),--cov --cov-report=term:skip-covered) $(ARGS)

.PHONY: fuzz
fuzz: setup ## Send every operation tens of thousands of generated requests; FUZZ=quick sends a thousand
	@$(PYTHON_IN_VENV) -m tests.fuzz

.PHONY: guide
guide: setup ## Follow docs/adding-a-feature.md in a copy, and run make check and make test there
	@GUIDE=full $(PYTHON_IN_VENV) -m pytest -n0 tests/test_guide.py $(ARGS)

.PHONY: faults
faults: setup ## Kill, hang, restart and demote PostgreSQL under load, for some minutes; ARGS="-k demoted" hands arguments to pytest
	@FAULTS=full $(PYTHON_IN_VENV) -m pytest -n0 tests/faults $(ARGS)

.PHONY: volume
volume: setup ## Run every step of the housekeeping on tables of 3,000,000 rows, for half an hour
	@VOLUME=full $(PYTHON_IN_VENV) -m pytest -n0 tests/test_housekeeping.py $(ARGS)

.PHONY: check
check: lint types contracts migrations generated ## Run every other check; make -k check goes on after the first that fails

.PHONY: lint
lint: setup ## Check style and layout
	@$(PYTHON_IN_VENV) -m ruff check .
	@$(PYTHON_IN_VENV) -m ruff format --check .

.PHONY: types
types: setup ## Check types
	@$(PYTHON_IN_VENV) -m mypy

.PHONY: contracts
contracts: setup ## Check who imports whom
	@mkdir -p .local
	@$(PYTHON_IN_VENV) -m app.dev contracts > .local/contracts.toml
	@.venv/bin/lint-imports --config .local/contracts.toml

.PHONY: migrations
migrations: setup ## Check that no migration locks a table in use or leaves a type behind
	@mkdir -p .local
	@$(PYTHON_IN_VENV) -m app.dev migrations > .local/migrations.sql
	@.venv/bin/squawk .local/migrations.sql

.PHONY: generated
generated: setup ## Check that generated documentation is up to date
	@$(PYTHON_IN_VENV) -m app.dev docs --check

.PHONY: bench
bench: setup ## Measure the application against a hand-written limit; ARGS="--only livez" takes one case, ROWS=20000 a smaller table
	@$(PYTHON_IN_VENV) -m benchmarks $(if $(ROWS),--rows $(ROWS)) $(ARGS)

.PHONY: mutation
mutation: setup ## Break the code of logins and tokens bit by bit and see that tests notice; SAMPLE=20 takes so many of a module
	@$(PYTHON_IN_VENV) -m tests.mutate --sample $(or $(SAMPLE),0) $(ARGS)

.PHONY: docs
docs: setup ## Write the generated documentation again
	@$(PYTHON_IN_VENV) -m app.dev docs

# Only from the command line: some systems set NAME to something else. The shell gets it as a variable, so any character is safe.
.PHONY: rename
rename: export PRODUCT_NAME = $(if $(filter command,$(origin NAME)),$(value NAME))
rename: export PRODUCT_SLUG = $(if $(filter command,$(origin SLUG)),$(value SLUG))
rename: setup ## Give the product a name of its own: NAME="Acme Billing"; SLUG=acme chooses its short form
	@$(PYTHON_IN_VENV) -m app.dev rename
	@$(MAKE) --no-print-directory docs

.PHONY: pins
pins: setup ## Pin the newest allowed versions in requirements/; PINS="--upgrade-package fastapi" moves one alone
	@.venv/bin/uv pip compile $(PIN_OPTIONS) $(PINS) pyproject.toml --output-file requirements/base.txt
	@.venv/bin/uv pip compile $(PIN_OPTIONS) $(PINS) --group dev pyproject.toml --output-file requirements/dev.txt
PINS = --upgrade
# No address of a registry gets into the files, which is the default: they install from any mirror.
PIN_OPTIONS = --quiet --universal --python-version 3.12 --generate-hashes
