#!/bin/sh
# Sets up .venv: finds a suitable Python and runs scripts/environment.py with it.
# Each candidate is executed, because a broken pyenv shim is on the PATH too, and exits with 127.
set -u
cd "$(dirname "$0")/.." || exit 1

# Usually .venv is current, and its own Python can check that.
if .venv/bin/python -I -S scripts/environment.py --is-current 2>/dev/null; then
    exit 0
fi

# Exit code 0: suitable. 3: suitable, but the venv module is missing; Debian packages it separately.
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
try_python() {
    "$1" -I -c "$probe" >/dev/null 2>&1
    case $? in
        0) exec "$1" -I scripts/environment.py ;;
        3) without_venv=${without_venv:-$1} ;;
    esac
}

if [ -n "${PYTHON:-}" ]; then
    try_python "$PYTHON"
    if [ -n "$without_venv" ]; then
        echo "$PYTHON has no venv module. Install it (package python3-venv on Debian and Ubuntu) and try again." >&2
    else
        echo "PYTHON=$PYTHON does not run Python 3.12 or newer. Set PYTHON to another interpreter, or unset it." >&2
    fi
    exit 1
fi

for name in python3.13 python3.12 python3.14 python3; do
    try_python "$name"
done
for version in 3.13 3.12 3.14; do
    for path in "${PYENV_ROOT:-${HOME:-}/.pyenv}/versions/$version".*/bin/python; do
        try_python "$path"
    done
done

if [ -n "$without_venv" ]; then
    echo "$without_venv has no venv module. Install it (package python3-venv on Debian and Ubuntu) and try again." >&2
else
    echo "Python 3.12, 3.13 or 3.14 was not found. Install one, or run: make setup PYTHON=/path/to/python3.13" >&2
fi
exit 1
