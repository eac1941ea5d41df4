#!/bin/sh
# Installs normlab with an extra ("lab" or "dev") into $VENV; called by make.
set -eu

extra=$1
venv=${VENV:-.venv}

starts() { # a version manager may offer a name whose Python is not installed
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 python}; do
        if starts "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    echo "normlab needs Python 3.11 or newer; found none${PYTHON:+ under the name $PYTHON}." >&2
    echo "Install one, or name it: make PYTHON=/path/to/python3" >&2
    exit 1
}

if ! starts "$venv/bin/python"; then
    python=$(find_python)
    if ! "$python" -m venv --clear "$venv"; then
        echo "$python cannot make a virtual environment." >&2
        echo "On Debian and Ubuntu: apt-get install python3-venv, then make again." >&2
        exit 1
    fi
fi
python=$venv/bin/python

echo "installing normlab[$extra] into $venv; the first time takes a minute or two" >&2
if [ -n "${CPU:-}" ]; then
    # uv knows where torch without GPU parts is published
    "$python" -m pip install --quiet uv
    "$venv/bin/uv" pip install --python "$python" --torch-backend cpu \
        --constraint constraints.txt --editable ".[$extra]"
    exit
fi
if ! "$python" -m pip install --quiet --constraint constraints.txt --editable ".[$extra]"; then
    echo "the pinned versions are not to be had for $("$python" --version); taking the newest" >&2
    "$python" -m pip install --quiet --editable ".[$extra]"
fi
