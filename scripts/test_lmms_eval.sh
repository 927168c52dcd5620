#!/usr/bin/env bash
# The plug-in in the real lmms-eval, against this repository's own evaluation.
#   bash scripts/test_lmms_eval.sh [--questions N]
# Makes .venv-lmms (a second environment: lmms-eval brings some thirty packages) and runs scripts/lmms/check.py in it.
# Needs a package index; the evaluation itself reads nothing from the network. PYTHON chooses the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
LMMS_EVAL=0.7.3

base=${PYTHON:-python3}
"$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: Python 3.11 or newer is needed, $base is $("$base" --version 2>&1); set PYTHON" >&2
    exit 1
}
[[ -x .venv-lmms/bin/python ]] || "$base" -m venv .venv-lmms
python=$PWD/.venv-lmms/bin/python
stamp=.venv-lmms/installed.txt
wanted="$LMMS_EVAL $(cat pyproject.toml constraints.txt scripts/lmms/requirements.txt | cksum)"
if [[ ! -f "$stamp" || "$(<"$stamp")" != "$wanted" ]]; then
    echo "installing into .venv-lmms"
    install=("$python" -m pip install --quiet --disable-pip-version-check -c constraints.txt)
    # torch by its exact version first: a range would take the newest build
    "${install[@]}" "$(grep '^torch==' constraints.txt)"
    "${install[@]}" -e ".[web]" openai -r scripts/lmms/requirements.txt
    # without its own list, which has packages (torchvision) that some indexes have no build of for this torch
    "${install[@]}" --no-deps "lmms_eval==$LMMS_EVAL"
    echo "$wanted" >"$stamp"
fi

OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} exec "$python" scripts/lmms/check.py "$@"
