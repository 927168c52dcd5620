#!/usr/bin/env bash
# Answers VQAv2 (test-dev) with VisiPruner, for its server: [VARIABLE=value ...] bash scripts/v1_5/visiPruner_eval/vqav2.sh
set -euo pipefail
# shellcheck source=scripts/v1_5/visiPruner_eval/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
run_benchmark vqav2 "$@"
