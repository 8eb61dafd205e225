#!/bin/sh
# Makes .venv complete and current. Finds a Python that really runs, then leaves the work to scripts/environment.py.
# Candidates are run, not looked up: a dead pyenv shim is found on the PATH and exits 127.
set -u
cd "$(dirname "$0")/.." || exit 1

# Nothing to do is the usual case, and the environment's own Python can tell.
if .venv/bin/python -I -S scripts/environment.py --is-current 2>/dev/null; then
    exit 0
fi

# Exits 0 for a Python that will do, 3 for one that will do except that Debian packages its venv module separately.
probe='
import sys
if sys.version_info < (3, 12):
    sys.exit(1)
try:
    import ensurepip, venv
except ImportError:
    sys.exit(3)
'
without_venv=
consider() {
    "$1" -I -c "$probe" >/dev/null 2>&1
    case $? in
        0) exec "$1" -I scripts/environment.py ;;
        3) without_venv=${without_venv:-$1} ;;
    esac
}

if [ -n "${PYTHON:-}" ]; then
    consider "$PYTHON"
    if [ -n "$without_venv" ]; then
        echo "$PYTHON has no venv module: install it (Debian and Ubuntu package it as python3-venv) and try again." >&2
    else
        echo "PYTHON=$PYTHON is not a Python 3.12 or newer that runs: name another one, or unset PYTHON." >&2
    fi
    exit 1
fi

for name in python3.13 python3.12 python3.14 python3; do
    consider "$name"
done
for version in 3.13 3.12 3.14; do
    for path in "${PYENV_ROOT:-${HOME:-}/.pyenv}/versions/$version".*/bin/python; do
        consider "$path"
    done
done

if [ -n "$without_venv" ]; then
    echo "$without_venv has no venv module: install it (Debian and Ubuntu package it as python3-venv) and try again." >&2
else
    echo "No Python 3.12, 3.13 or 3.14 was found: install one, or name one like this: make setup PYTHON=/path/to/python3.13" >&2
fi
exit 1
