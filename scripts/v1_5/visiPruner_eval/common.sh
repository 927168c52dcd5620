# Shared by gqa.sh, mme.sh and textvqa.sh, which source it: settings, checks, parallel chunks, merge, score.
# The caller sets BENCHMARK (for messages), SPLIT_DEFAULT, REAL_FOLDER and TINY_FOLDER (below DATA_DIR) first.
# shellcheck shell=bash

README_JSON='{"mode":["shallow","middle","deep"],"shallow_mid_layer":6,"layer_threshold":0.995,"tokens_threshold":0.2}'
TINY_MODEL=playground/checkpoints/llava-tiny
# shellcheck disable=SC2034  # the callers use it
EVAL_ZIP="LLaVA's eval.zip, linked in https://github.com/haotian-liu/LLaVA/blob/main/docs/Evaluation.md"

usage() {
    cat <<EOT
Usage: [VARIABLE=value ...] bash $0

Answers $BENCHMARK with a pruned model, one process for each GPU in CUDA_VISIBLE_DEVICES, and scores the answers.
Paths are relative to the repository root. An interrupted run resumes when it is started again.

  TINY=1           the small model in $TINY_MODEL on $TINY_FOLDER (written on demand)
  DENSE=1          no pruning
  PRUNING_CONFIG   JSON, or the path of a .json file; default: LLaVA-1.5-7B's
                   $README_JSON
                   with TINY=1: $TINY_MODEL/pruning.json
  MODEL_PATH       checkpoint folder or hub name (default liuhaotian/llava-v1.5-7b); MODEL_BASE: the language model, for a projector-only checkpoint
  CKPT             name of the checkpoint in the answers' path (default: last part of MODEL_PATH)
  EXPERIMENT       name of the run in the answers' path (default visipruner, or dense)
  DATA_DIR         folder of all benchmarks (default playground/data/eval)
  SPLIT            question file without .jsonl (default $SPLIT_DEFAULT)
  CONV_MODE        conversation template, for LLaVA's original layout alone (default vicuna_v1)
  BATCH_SIZE       prompts a batch (default 8)
  DEVICE, DTYPE    as --device and --dtype of llava.eval.model_vqa_loader (default: its own)
  LIMIT            ask only the first questions; the score is then marked partial
  OVERWRITE=1      begin again instead of resuming
  PYTHON           interpreter (default .venv/bin/python where it exists, else python)
EOT
}

fail() {
    echo "error: $*" >&2
    exit 1
}

# Reads the settings, goes to the repository root and sets BENCH_DIR, QUESTION_FILE, ANSWERS_DIR.
configure() {
    case "${1-}" in
        "") ;;
        -h | --help) usage; exit 0 ;;
        *) echo "error: unknown argument $1; settings are variables, see: bash $0 --help" >&2; exit 2 ;;
    esac
    cd "$(dirname "${BASH_SOURCE[0]}")/../../.." || fail "the repository root of $0 cannot be entered"
    if [[ -z "${PYTHON-}" ]]; then
        PYTHON=python
        command -v python >/dev/null || PYTHON=python3
        if [[ -x .venv/bin/python ]]; then PYTHON=.venv/bin/python; fi
    fi
    command -v "$PYTHON" >/dev/null || fail "PYTHON=$PYTHON is not an executable; set it to this package's interpreter"
    TINY=${TINY:-0} DENSE=${DENSE:-0} OVERWRITE=${OVERWRITE:-0}
    DATA_DIR=${DATA_DIR:-playground/data/eval}
    SPLIT=${SPLIT:-$SPLIT_DEFAULT}
    BATCH_SIZE=${BATCH_SIZE:-8}
    if [[ "$TINY" == 1 ]]; then
        MODEL_PATH=${MODEL_PATH:-$TINY_MODEL}
        PRUNING_CONFIG=${PRUNING_CONFIG:-$TINY_MODEL/pruning.json}
        BENCH_DIR=$DATA_DIR/$TINY_FOLDER
    else
        MODEL_PATH=${MODEL_PATH:-liuhaotian/llava-v1.5-7b}
        PRUNING_CONFIG=${PRUNING_CONFIG:-$README_JSON}
        BENCH_DIR=$DATA_DIR/$REAL_FOLDER
    fi
    if [[ "$DENSE" == 1 ]]; then
        PRUNING_CONFIG=
        EXPERIMENT=${EXPERIMENT:-dense}
    fi
    MODEL_PATH=${MODEL_PATH%/}
    CKPT=${CKPT:-${MODEL_PATH##*/}}
    QUESTION_FILE=$BENCH_DIR/$SPLIT.jsonl
    ANSWERS_DIR=$BENCH_DIR/answers/$SPLIT/$CKPT/${EXPERIMENT:-visipruner}
    MISSING=()
}

# need file|folder PATH WHERE_FROM: notes what is missing, for stop_if_missing.
need() {
    if [[ "$1" == file && -f "$2" ]]; then return; fi
    if [[ "$1" == folder && -d "$2" && -n "$(find -L "$2" -mindepth 1 -print -quit)" ]]; then return; fi
    MISSING+=("$1 $2"$'\n'"      from: $3")
}

# Writes the mini benchmarks where TINY=1 and this one's questions are not there yet.
write_tiny_benchmark() {
    if [[ "$TINY" != 1 || -f "$QUESTION_FILE" ]]; then return; fi
    echo "writing the mini benchmarks to $DATA_DIR"
    "$PYTHON" -m llava.tiny.benchmarks --out "$DATA_DIR" || fail "llava.tiny.benchmarks could not write $BENCH_DIR"
}

need_model() {
    local cache=${HF_HUB_CACHE:-${HF_HOME:-$HOME/.cache/huggingface}/hub}
    local where="a checkpoint folder (config.json, weights, tokenizer); set MODEL_PATH to it"
    if [[ "$MODEL_PATH" == "$TINY_MODEL" ]]; then where="this repository; restore it with git"; fi
    if [[ -d "$MODEL_PATH" ]]; then
        need file "$MODEL_PATH/config.json" "$where"
    elif [[ ! "$MODEL_PATH" =~ ^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$ ]]; then
        need folder "$MODEL_PATH" "$where"
    elif [[ ! -d "$cache/models--${MODEL_PATH/\//--}" ]]; then
        if [[ "${HF_HUB_OFFLINE:-0}" =~ ^(1|[Tt]rue|TRUE|[Yy]es|YES|[Oo]n|ON)$ ]]; then
            need folder "$cache/models--${MODEL_PATH/\//--}" "the hub's $MODEL_PATH (HF_HUB_OFFLINE is set); or $where"
        else
            MODEL_NOTE="$MODEL_PATH is neither a folder nor in $cache and will be downloaded (or set MODEL_PATH)"
        fi
    fi
    if [[ "$PRUNING_CONFIG" == *.json ]]; then
        need file "$PRUNING_CONFIG" "a pruning configuration; or set PRUNING_CONFIG to JSON"
    fi
}

stop_if_missing() {
    if ((${#MISSING[@]})); then
        echo "error: $BENCHMARK cannot run; missing (paths from $PWD):" >&2
        printf '  %s\n' "${MISSING[@]}" >&2
        exit 1
    fi
    if [[ -n "${MODEL_NOTE-}" ]]; then echo "note: $MODEL_NOTE"; fi
}

# Answers of other settings must not be resumed: the folder keeps the settings that its answers were made with.
check_settings() {
    local config=$PRUNING_CONFIG kept=$ANSWERS_DIR/settings.txt settings
    if [[ "$config" == *.json ]]; then config=$(<"$config"); fi
    settings=$(printf 'model %s\nbase %s\nconversation %s\npruning %s' \
        "$MODEL_PATH" "${MODEL_BASE:-none}" "${CONV_MODE:-default}" "${config:-none}")
    mkdir -p "$ANSWERS_DIR"
    # A run that was refused before its first answer binds nobody.
    if [[ -n "$(find "$ANSWERS_DIR" -maxdepth 1 -name '[0-9]*_[0-9]*.jsonl' -size +0 -print -quit)" &&
        -f "$kept" && "$OVERWRITE" != 1 && "$(<"$kept")" != "$settings" ]]; then
        fail "$ANSWERS_DIR holds answers of other settings (settings.txt); set EXPERIMENT=name or OVERWRITE=1"
    fi
    # Chunks of another number of GPUs too: none of them may be resumed under the new settings.
    if [[ "$OVERWRITE" == 1 ]]; then rm -f "$ANSWERS_DIR"/[0-9]*_[0-9]*.jsonl; fi
    printf '%s\n' "$settings" >"$kept"
}

# ask INDEX GPU IMAGE_FOLDER: becomes the process that answers one chunk.
ask() {
    local args=(
        --model-path "$MODEL_PATH" --question-file "$QUESTION_FILE" --image-folder "$3"
        --answers-file "$ANSWERS_DIR/${CHUNKS}_$1.jsonl" --num-chunks "$CHUNKS" --chunk-idx "$1"
        --temperature 0 --batch-size "$BATCH_SIZE"
    )
    if [[ -n "${CONV_MODE-}" ]]; then args+=(--conv-mode "$CONV_MODE"); fi
    if [[ -n "${MODEL_BASE-}" ]]; then args+=(--model-base "$MODEL_BASE"); fi
    if [[ -n "$PRUNING_CONFIG" ]]; then args+=(--pruning-config "$PRUNING_CONFIG"); fi
    if [[ -n "${DEVICE-}" ]]; then args+=(--device "$DEVICE"); fi
    if [[ -n "${DTYPE-}" ]]; then args+=(--dtype "$DTYPE"); fi
    if [[ -n "${LIMIT-}" ]]; then args+=(--limit "$LIMIT"); fi
    if [[ "$OVERWRITE" == 1 ]]; then args+=(--overwrite); else args+=(--resume); fi
    if [[ -n "$2" ]]; then export CUDA_VISIBLE_DEVICES=$2; fi
    exec "$PYTHON" -m llava.eval.model_vqa_loader "${args[@]}"
}

# run_chunks IMAGE_FOLDER: answers all questions, one chunk for each GPU; fails if any chunk fails.
run_chunks() {
    local gpus=() pids=() failed=() index log
    check_settings
    # No GPU named, or CPU asked for: one chunk, and the loader chooses the device.
    if [[ "${CUDA_VISIBLE_DEVICES-}" =~ [^,[:space:]] && "$CUDA_VISIBLE_DEVICES" != -1 && "${DEVICE-}" != cpu ]]; then
        IFS=', ' read -ra gpus <<<"$CUDA_VISIBLE_DEVICES"
    fi
    CHUNKS=${#gpus[@]}
    if ((CHUNKS <= 1)); then
        CHUNKS=1
        (ask 0 "" "$1") || fail "$BENCHMARK stopped, see above; mend that and start the script again: it resumes"
        return
    fi
    for ((index = 0; index < CHUNKS; index++)); do
        log=$ANSWERS_DIR/${CHUNKS}_$index.log
        ask "$index" "${gpus[index]}" "$1" >"$log" 2>&1 &
        pids+=($!)
        echo "chunk $index of $CHUNKS on GPU ${gpus[index]}: $log"
    done
    # Background processes ignore Ctrl-C unless they are told.
    trap 'kill "${pids[@]}" 2>/dev/null || true; exit 130' INT TERM
    for ((index = 0; index < CHUNKS; index++)); do
        wait "${pids[index]}" || failed+=("$index")
    done
    trap - INT TERM
    if ((${#failed[@]})); then
        for index in "${failed[@]}"; do
            log=$ANSWERS_DIR/${CHUNKS}_$index.log
            echo "--- the end of $log" >&2
            tail -n 15 "$log" >&2
        done
        fail "chunks ${failed[*]} of $CHUNKS failed; start the script again to resume"
    fi
}

# score MODULE ARGUMENT...: merges the chunks into merge.jsonl in question order and scores it, also into score.txt.
# The word ANSWERS among the arguments stands for the merged file.
score() {
    local module=$1 chunks=() partial=() args=() index merged=$ANSWERS_DIR/merge.jsonl word
    shift
    if [[ -n "${LIMIT-}" ]]; then partial=(--partial); fi
    for ((index = 0; index < CHUNKS; index++)); do chunks+=("$ANSWERS_DIR/${CHUNKS}_$index.jsonl"); done
    "$PYTHON" -m llava.eval.merge --questions "$QUESTION_FILE" --output "$merged" \
        ${partial[@]+"${partial[@]}"} "${chunks[@]}"
    for word in "$@"; do
        if [[ "$word" == ANSWERS ]]; then word=$merged; fi
        args+=("$word")
    done
    "$PYTHON" -m "$module" "${args[@]}" ${partial[@]+"${partial[@]}"} | tee "$ANSWERS_DIR/score.txt"
}
