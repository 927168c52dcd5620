#!/usr/bin/env bash
# Runs and scores ScienceQA-IMG with VisiPruner: [VARIABLE=value ...] bash scripts/v1_5/visiPruner_eval/scienceqa.sh
set -euo pipefail
# shellcheck source=scripts/v1_5/visiPruner_eval/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
run_benchmark scienceqa "$@"
