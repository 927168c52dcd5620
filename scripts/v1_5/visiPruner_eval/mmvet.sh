#!/usr/bin/env bash
# Answers MM-Vet with VisiPruner, for its grader: [VARIABLE=value ...] bash scripts/v1_5/visiPruner_eval/mmvet.sh
set -euo pipefail
# shellcheck source=scripts/v1_5/visiPruner_eval/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
run_benchmark mmvet "$@"
