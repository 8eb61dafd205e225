# The commands of this project. Each one first sets up .venv, which is fast if it is current.
.DEFAULT_GOAL := help
PYTHON_IN_VENV := .venv/bin/python

# Container images set this. Then each start compiles all modules again and takes three seconds instead of one.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help: ## List the commands
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

.PHONY: setup
setup: ## Set up .venv; PYTHON=/path/to/python chooses the interpreter
	@sh scripts/setup.sh

.PHONY: run
run: setup ## Start the application on its own database; PORT=8001 sets the port, DATABASE_URL=… another database
	@$(PYTHON_IN_VENV) -m app.dev run

.PHONY: database
database: setup ## Start only the database of make run, for psql and the app command
	@$(PYTHON_IN_VENV) -m app.dev database

# NAME is read only from the command line, because some systems set NAME in the environment.
.PHONY: migration
migration: export MIGRATION_NAME = $(if $(filter command,$(origin NAME)),$(value NAME))
migration: setup ## Draft a migration for the changes of the models: NAME="add nickname"
	@$(PYTHON_IN_VENV) -m app.dev migration

.PHONY: psql
psql: setup ## Start psql on the database of make run
	@$(PYTHON_IN_VENV) -m app.dev psql

.PHONY: shell
shell: setup ## Start a Python prompt with a session, the settings and the services; await works
	@$(PYTHON_IN_VENV) -m app.dev shell

.PHONY: app
app: setup ## Run the app command on the database of make run: ARGS="users create-admin you@example.com"
	@$(PYTHON_IN_VENV) -m app.dev app $(ARGS)

.PHONY: seed
seed: setup ## Add example data to the database of make run: accounts, and what each feature brings
	@$(PYTHON_IN_VENV) -m app.dev seed

.PHONY: reset
reset: setup ## Delete the data of make run, after a question; YES=1 answers it
	@$(PYTHON_IN_VENV) -m app.dev reset

.PHONY: test
test: setup ## Run the tests; ALL=1 includes slow tests, ARGS="-k login" passes options to pytest, COVERAGE=1 measures coverage
	@$(PYTHON_IN_VENV) -m pytest -m "not deploy$(if $(ALL),, and not slow)" $(if $(COVERAGE),-p tests.coverage_monitor) $(ARGS)

.PHONY: deployment
deployment: setup ## Check the files in deploy/ with systemd, kubectl, schemas and real proxies; PROXIES=full restarts longer under load
	@test -x .local/deploy/bin/pip || .venv/bin/python -m venv .local/deploy
	@.local/deploy/bin/pip install --quiet --require-hashes -r requirements/deploy.txt
	@PATH="$(CURDIR)/.local/deploy/bin:$$PATH" $(PYTHON_IN_VENV) -m pytest -n0 -m deploy tests/deploy $(ARGS)

.PHONY: image
image: setup ## Build the image twice and run it, as root with buildah, podman, runc and mmdebstrap (minutes)
	@IMAGE=full $(PYTHON_IN_VENV) -m pytest -n0 -m deploy tests/deploy/test_image.py -rP $(ARGS)

.PHONY: fuzz
fuzz: setup ## Send tens of thousands of generated requests to each operation; FUZZ=quick sends a thousand
	@$(PYTHON_IN_VENV) -m tests.fuzz

.PHONY: guide
guide: setup ## Follow docs/adding-a-feature.md in a copy of the repository, and run make check and make test there; then rename a column
	@GUIDE=full $(PYTHON_IN_VENV) -m pytest -n0 tests/test_guide.py tests/test_renaming.py $(ARGS)

.PHONY: removals
removals: setup ## Remove each removable part of this project in a copy, and run the checks and all tests there
	@REMOVALS=full $(PYTHON_IN_VENV) -m pytest -n0 tests/dev/removal/test_shipped.py $(ARGS)

.PHONY: faults
faults: setup ## Kill, suspend, restart and demote PostgreSQL under load (minutes); ARGS="-k primary" passes options to pytest
	@FAULTS=full $(PYTHON_IN_VENV) -m pytest -n0 tests/faults $(ARGS)

.PHONY: volume
volume: setup ## Run all housekeeping steps on tables of 3,000,000 rows (half an hour)
	@VOLUME=full $(PYTHON_IN_VENV) -m pytest -n0 tests/test_housekeeping.py $(ARGS)

.PHONY: check
check: lint types contracts migrations generated ## Run all checks except the tests; make -k check continues after a failure

.PHONY: lint
lint: setup ## Check style and formatting
	@$(PYTHON_IN_VENV) -m ruff check .
	@$(PYTHON_IN_VENV) -m ruff format --check .

.PHONY: types
types: setup ## Check types
	@$(PYTHON_IN_VENV) -m mypy

.PHONY: contracts
contracts: setup ## Check the import rules
	@mkdir -p .local
	@$(PYTHON_IN_VENV) -m app.dev contracts > .local/contracts.toml
	@.venv/bin/lint-imports --config .local/contracts.toml

.PHONY: migrations
migrations: setup ## Check that migrations are safe on tables in use, and that downgrades drop their types
	@mkdir -p .local
	@$(PYTHON_IN_VENV) -m app.dev migrations > .local/migrations.sql
	@.venv/bin/squawk .local/migrations.sql

.PHONY: generated
generated: setup ## Check that the generated documentation is up to date
	@$(PYTHON_IN_VENV) -m app.dev docs --check

.PHONY: bench
bench: setup ## Compare the application with a minimal implementation; ARGS="--only livez" runs one case, ROWS=20000 a smaller table
	@$(PYTHON_IN_VENV) -m benchmarks $(if $(ROWS),--rows $(ROWS)) $(ARGS)

.PHONY: mutation
mutation: setup ## Mutate the code of logins and tokens and check that tests fail; SAMPLE=20 limits the mutants per module
	@$(PYTHON_IN_VENV) -m tests.mutate --sample $(or $(SAMPLE),0) $(ARGS)

.PHONY: docs
docs: setup ## Write the generated documentation
	@$(PYTHON_IN_VENV) -m app.dev docs

.PHONY: images
images: setup ## Write a picture of each account page to docs/images
	@$(PYTHON_IN_VENV) -m tests.self_service.images

# NAME and SLUG are read only from the command line, because some systems set NAME in the environment. They are passed as
# environment variables, so every character is safe.
.PHONY: rename
rename: export PRODUCT_NAME = $(if $(filter command,$(origin NAME)),$(value NAME))
rename: export PRODUCT_SLUG = $(if $(filter command,$(origin SLUG)),$(value SLUG))
rename: setup ## Rename the product: NAME="Acme Billing"; SLUG=acme sets its short form
	@$(PYTHON_IN_VENV) -m app.dev rename
	@$(MAKE) --no-print-directory docs

# As above: only from the command line, and safe for every character.
.PHONY: feature
feature: export FEATURE_NAME = $(if $(filter command,$(origin NAME)),$(value NAME))
feature: export FEATURE_FIELDS = $(if $(filter command,$(origin FIELDS)),$(value FIELDS))
feature: export FEATURE_ONE = $(if $(filter command,$(origin ONE)),$(value ONE))
feature: export FEATURE_SCOPE = $(if $(filter command,$(origin SCOPE)),$(value SCOPE))
feature: export FEATURE_PUBLIC = $(if $(filter command,$(origin PUBLIC)),$(value PUBLIC))
feature: export FEATURE_DRY = $(if $(filter command,$(origin DRY)),$(value DRY))
feature: setup ## Write a feature with its tests: NAME=notes FIELDS="title:str due:date:optional"; DRY=1 only prints; more options: docs/generator.md
	@$(PYTHON_IN_VENV) -m app.dev.generator

# As above: only from the command line.
.PHONY: upgrade
upgrade: export UPGRADE_TO = $(if $(filter command,$(origin TO)),$(value TO))
upgrade: export UPGRADE_FROM = $(if $(filter command,$(origin FROM)),$(value FROM))
upgrade: export UPGRADE_DRY = $(if $(filter command,$(origin DRY)),$(value DRY))
upgrade: setup ## Merge a newer version of upstream on a branch: TO=commit-or-tag; DRY=1 only prints the conflicts (docs/upgrading.md)
	@$(PYTHON_IN_VENV) scripts/upgrade.py

.PHONY: drill
drill: setup ## Upgrade grown clones of earlier versions, and print the table of docs/upgrading.md; ARGS="--quick" upgrades one clone
	@$(PYTHON_IN_VENV) -m tests.drill $(ARGS)

.PHONY: rolling
rolling: setup ## Replace the processes of the release before one by one under load, and roll back; ARGS="--clients 8 --pause 5"
	@$(PYTHON_IN_VENV) -m tests.drill.rolling $(ARGS)
# As above: only from the command line, and safe for every character.
.PHONY: remove
remove: export REMOVE_NAME = $(if $(filter command,$(origin NAME)),$(value NAME))
remove: export REMOVE_DEPLOYED = $(if $(filter command,$(origin DEPLOYED)),$(value DEPLOYED))
remove: export REMOVE_FORCE = $(if $(filter command,$(origin FORCE)),$(value FORCE))
remove: export REMOVE_DRY = $(if $(filter command,$(origin DRY)),$(value DRY))
remove: setup ## Remove a feature with its tests: NAME=notes; DEPLOYED=1 drops its tables by a migration; DRY=1 only prints (docs/removing.md)
	@$(PYTHON_IN_VENV) -m app.dev remove
	@$(if $(REMOVE_DRY),,$(MAKE) --no-print-directory docs)

.PHONY: pins
pins: setup ## Pin the newest allowed versions in requirements/; PINS="--upgrade-package fastapi" upgrades only one package
	@.venv/bin/uv pip compile $(PIN_OPTIONS) $(PINS) pyproject.toml --output-file requirements/base.txt
	@.venv/bin/uv pip compile $(PIN_OPTIONS) $(PINS) --group dev pyproject.toml --output-file requirements/dev.txt
	@.venv/bin/uv pip compile $(PIN_OPTIONS) $(PINS) --group deploy --output-file requirements/deploy.txt
PINS = --upgrade
# By default, the files contain no registry URL, so they can be installed from any mirror.
PIN_OPTIONS = --quiet --universal --python-version 3.12 --generate-hashes
