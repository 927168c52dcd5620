# Shared by the scripts beside it, which source it: settings from variables, then python -m llava.eval.run does the work.
# shellcheck shell=bash

README_JSON='{"mode":["shallow","middle","deep"],"layer_threshold":0.995,"tokens_threshold":0.2}'
TINY_MODEL=playground/checkpoints/llava-tiny

usage() {
    cat <<EOT
Usage: [VARIABLE=value ...] bash $0

Answers $1 with a pruned model and scores the answers: one process per GPU in CUDA_VISIBLE_DEVICES.
Paths are relative to the repository root. An interrupted run continues when it is started again.

  TINY=1           the small model in $TINY_MODEL on $1_mini (written on demand); gqa, mme and textvqa only
  DENSE=1          no pruning
  PRUNING_CONFIG   JSON, or the path of a .json file; default: LLaVA-1.5-7B's
                   $README_JSON
                   with TINY=1: $TINY_MODEL/pruning.json
  MODEL_PATH       checkpoint folder or hub name (default liuhaotian/llava-v1.5-7b)
  MODEL_BASE       the language model, for a projector-only checkpoint
  DATA_DIR         folder of all benchmarks (default playground/data/eval)
  SPLIT            another question file of the benchmark's folder, without .jsonl
  OUT              folder of the answers (default runs/CKPT)
  CKPT             name of the checkpoint in that default (default: last part of MODEL_PATH)
  EXPERIMENT       name of the run: OUT/$1/EXPERIMENT.jsonl (default visipruner, or dense)
  CONV_MODE        conversation template, for LLaVA's original layout alone (default vicuna_v1)
  BATCH_SIZE       prompts per batch (default 8)
  DEVICE, DTYPE    as --device and --dtype of llava.eval.run (default: its own)
  LIMIT            ask only the first questions; the score is then marked partial
  OVERWRITE=1      start again instead of resuming
  PYTHON           interpreter (default .venv/bin/python where it exists, else python)
EOT
}

fail() {
    echo "error: $*" >&2
    exit 1
}

# run_benchmark NAME [ARGUMENT]: becomes the process, or the launcher of the processes, that answer and score it.
run_benchmark() {
    local benchmark=$1 args gpus=()
    case "${2-}" in
        "") ;;
        -h | --help) usage "$benchmark"; exit 0 ;;
        *) echo "error: unknown argument $2; settings are variables, see: bash $0 --help" >&2; exit 2 ;;
    esac
    cd "$(dirname "${BASH_SOURCE[0]}")/../../.." || fail "the repository root of $0 cannot be entered"
    if [[ -z "${PYTHON-}" ]]; then
        PYTHON=python
        command -v python >/dev/null || PYTHON=python3
        if [[ -x .venv/bin/python ]]; then PYTHON=.venv/bin/python; fi
    fi
    command -v "$PYTHON" >/dev/null || fail "PYTHON=$PYTHON is not an executable; set it to this package's interpreter"
    DATA_DIR=${DATA_DIR:-playground/data/eval}
    if [[ "${TINY:-0}" == 1 ]]; then
        [[ "$benchmark" =~ ^(gqa|mme|textvqa)$ ]] || fail "TINY=1: there is no small $benchmark; gqa, mme, textvqa have one"
        benchmark=${benchmark}_mini
        MODEL_PATH=${MODEL_PATH:-$TINY_MODEL}
        PRUNING_CONFIG=${PRUNING_CONFIG:-$TINY_MODEL/pruning.json}
        if [[ ! -d "$DATA_DIR/$benchmark" ]]; then
            echo "writing the mini benchmarks to $DATA_DIR"
            "$PYTHON" -m llava.tiny.benchmarks --out "$DATA_DIR" || fail "they could not be written"
        fi
    fi
    MODEL_PATH=${MODEL_PATH:-liuhaotian/llava-v1.5-7b}
    MODEL_PATH=${MODEL_PATH%/}
    args=(
        -m llava.eval.run --benchmark "$benchmark" --model-path "$MODEL_PATH" --data-dir "$DATA_DIR"
        --out "${OUT:-runs/${CKPT:-${MODEL_PATH##*/}}}" --batch-size "${BATCH_SIZE:-8}"
    )
    if [[ "${DENSE:-0}" == 1 ]]; then
        args+=(--name "${EXPERIMENT:-dense}")
    else
        args+=(--name "${EXPERIMENT:-visipruner}" --pruning-config "${PRUNING_CONFIG:-$README_JSON}")
    fi
    if [[ -n "${MODEL_BASE-}" ]]; then args+=(--model-base "$MODEL_BASE"); fi
    if [[ -n "${SPLIT-}" ]]; then args+=(--split "$SPLIT"); fi
    if [[ -n "${CONV_MODE-}" ]]; then args+=(--conv-mode "$CONV_MODE"); fi
    if [[ -n "${DEVICE-}" ]]; then args+=(--device "$DEVICE"); fi
    if [[ -n "${DTYPE-}" ]]; then args+=(--dtype "$DTYPE"); fi
    if [[ -n "${LIMIT-}" ]]; then args+=(--limit "$LIMIT"); fi
    if [[ "${OVERWRITE:-0}" == 1 ]]; then args+=(--overwrite); fi
    if [[ "${CUDA_VISIBLE_DEVICES-}" =~ [^,[:space:]] && "$CUDA_VISIBLE_DEVICES" != -1 && "${DEVICE-}" != cpu ]]; then
        IFS=', ' read -ra gpus <<<"$CUDA_VISIBLE_DEVICES"
    fi
    if ((${#gpus[@]} > 1)); then
        args=(
            -m accelerate.commands.launch --multi_gpu --num_machines 1 --num_processes "${#gpus[@]}"
            --main_process_port 0 --mixed_precision no --dynamo_backend no "${args[@]}"
        )
    fi
    exec "$PYTHON" "${args[@]}"
}
