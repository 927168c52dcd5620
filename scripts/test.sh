#!/usr/bin/env bash
# Environment, lint and tests, on CPU: bash scripts/test.sh [pytest arguments]
set -euo pipefail
# shellcheck source=scripts/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
prepare_environment "[dev]"

# for tests/test_web_page.py, which skips itself where there is none
if ! command -v chromium >/dev/null && ((EUID == 0)) && command -v apt-get >/dev/null; then
    echo "installing chromium"
    { apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium; } >/dev/null 2>&1 ||
        echo "chromium cannot be installed: the page is not tested"
fi

export CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m codespell_lib
if (($#)); then exec "$PYTHON" -m pytest "$@"; fi
exec "$PYTHON" -m pytest -n "${TEST_WORKERS:-2}" --dist loadfile
