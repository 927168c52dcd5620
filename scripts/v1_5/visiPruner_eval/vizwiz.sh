#!/usr/bin/env bash
# Answers VizWiz (test) with VisiPruner, for its server: [VARIABLE=value ...] bash scripts/v1_5/visiPruner_eval/vizwiz.sh
set -euo pipefail
# shellcheck source=scripts/v1_5/visiPruner_eval/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
run_benchmark vizwiz "$@"
