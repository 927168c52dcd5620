# Sourced by quickstart.sh and test.sh: go to the repository root, make or reuse .venv, install pinned; sets PYTHON.
# shellcheck shell=bash

# prepare_environment EXTRAS: EXTRAS is empty or, for example, "[dev]".
prepare_environment() {
    local stamp=.venv/installed.txt wanted python=${PYTHON:-}
    cd "$(dirname "${BASH_SOURCE[0]}")/.."
    if [[ -z "$python" ]]; then
        python=python3
        command -v python3 >/dev/null || python=python
    fi
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "error: Python 3.11 or newer is needed, $python is $("$python" --version 2>&1); set PYTHON" >&2
        exit 1
    }
    [[ -x .venv/bin/python ]] || "$python" -m venv .venv
    PYTHON=$PWD/.venv/bin/python
    wanted="$1 $(cat pyproject.toml constraints.txt | cksum)"
    if [[ ! -f "$stamp" ]] || ! grep -qxF "$wanted" "$stamp"; then
        echo "installing into .venv (pinned by constraints.txt)"
        # torch by its exact version first: a range would take the newest build
        "$PYTHON" -m pip install --quiet --disable-pip-version-check "$(grep '^torch==' constraints.txt)"
        "$PYTHON" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".$1"
        echo "$wanted" >>"$stamp"
    fi
    export PYTHON
}
