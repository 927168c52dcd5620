r"""Benchmark time, memory and FLOPs on this machine, dense and pruned: speed-up as a share of the FLOPs ceiling.

    python -m llava.eval.bench --shape llava-1.5-7b --num-layers 8 --dtype float32 \
        --pruning-config 'plan={"method":"replay","filter_layer":3,"keep":10,"exit_layer":6}'
    python -m llava.eval.bench --model-path playground/checkpoints/llava-tiny --batch-size 8 \
        --pruning-config playground/checkpoints/llava-tiny/pruning.json
    python -m llava.eval.bench --train --shape tiny --batch-size 8 \
        --pruning-config '{"method":"schedule","enter":3,"keep":{"4":22,"5":3},"exit":9}'

A shape is the decoder of a published model with random weights; nothing is downloaded. Dense is transformers' model
with SDPA. Dense and all configs take turns; figures are medians over rounds with their range (columns:
docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Sequence

from llava.cli import print_json, run_command
from llava.eval.timing.options import BenchOptions

EPILOG = """The last line of the output is JSON: "dense" and, by name, "configs", each with prefill_ms,
decode_ms_per_token, vision_ms, peak_bytes, kv_bytes, flops, ceiling, speedup, efficiency, probe_share, probe_ms (and
a …_range beside what varies), tokens_per_layer and plans; "settings", "machine" and "warnings". With
--questions-per-image: "questions" by name, each with questions_per_second, questions_per_second_reuse, gain_reuse,
gain_pruning, gain. With --train: "training" by name, each with seconds, peak_bytes, and speedup, promised and reached
over padded and over packed steps."""


def work(options: BenchOptions) -> None:
    """Time, and print the tables."""
    from llava.eval.timing import training
    from llava.eval.timing.measurement import bench
    from llava.eval.timing.tables import heading, print_questions, print_times

    result = bench(options)
    if options.train:
        training.show(result)
        print_json(result, options)
        return
    print(heading(result["settings"], result["machine"]) + "\n")
    if "questions" in result:
        print_questions(result["questions"])
    else:
        print_times(result)
    print_json(result, options)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return run_command(
        BenchOptions,
        work,
        argv,
        prog="python -m llava.eval.bench",
        description=__doc__,
        epilog=EPILOG,
        interrupted="interrupted; nothing was measured to the end",
    )


if __name__ == "__main__":
    raise SystemExit(main())
