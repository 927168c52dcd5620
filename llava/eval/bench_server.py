"""Measure `llava-web` under load: requests per second and time to the first token, memory, fuzzed requests, kills."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.cli import OutputOptions, UserError, number, option, print_json, run_command
from llava.serve.cli_pruning import SMALL_MODEL

PROG = "python -m llava.eval.bench_server"
EPILOG = """
Each server is a process of its own on a loopback port. Every cell asks --requests questions by 1, 8 and 32 clients at a
time, all about one image or each about another, of three servers:

pruned             the model's pruning.json, in the pruning engine, with its prefix cache
dense              nothing pruned, in the pruning engine, with its prefix cache
plain              nothing pruned, transformers' own forward, no prefix cache, behind the same app

examples:
  python -m llava.eval.bench_server
  python -m llava.eval.bench_server --wide-layers 2 --requests 16 --clients 1,8
  python -m llava.eval.bench_server --clients "" --soak 3600 --fuzz 10000 --kill
"""
SERVERS = {
    "pruned": [],
    "dense": ["--pruning-config", "none"],
    "plain": ["--pruning-config", "none", "--untouched", "--prefix-cache", "off"],
}


@dataclass(kw_only=True)
class Options(OutputOptions):
    """What is measured."""

    model_path: str = option(str(SMALL_MODEL), help="checkpoint folder (default: the small model)")
    pruning_config: str | None = option(None, help="of the pruned server (default: the model's pruning.json)")
    wide_layers: int | None = option(
        None,
        help="in place of the model: a random decoder of LLaVA-1.5-7B's width with so many layers",
        type=number(int, 1, 32),
    )
    device: str = option("auto", help="auto (default), cpu, cuda, mps")
    dtype: str = option("auto", help="auto (default), float32, float16, bfloat16")
    clients: str = option("1,8,32", help="numbers of clients, with commas; empty: no such measurement")
    requests: int = option(64, help="requests per cell (default 64)", type=number(int, 1))
    new_tokens: int = option(8, help="tokens per answer (default 8)", type=number(int, 1))
    rounds: int = option(1, help="rounds over all cells; the best one counts (default 1)", type=number(int, 1))
    soak: float = option(0.0, help="seconds of mixed load, watching memory (default 0: none)", type=number(float, 0))
    fuzz: int = option(0, help="fuzzed requests to send (default 0)", type=number(int, 0))
    kill: bool = option(False, help="kill the server with SIGKILL under load and start it again")
    seed: int = option(0, help="of the fuzzed requests", type=number(int, 0))


def work(options: Options) -> None:
    """Measure and print."""
    clients = _numbers(options.clients)
    with tempfile.TemporaryDirectory() as temporary:
        model = options.model_path
        if options.wide_layers is not None:
            model = str(write_wide_model(Path(temporary), options.wide_layers))
        words = ["--model-path", model, "--device", options.device, "--dtype", options.dtype]
        words += ["--max-batch", "32", "--max-queue", "256"]
        record: dict[str, Any] = {"model": Path(model).name, "cells": measure_cells(options, words, clients)}
        pruned = [*words, *(["--pruning-config", options.pruning_config] if options.pruning_config else [])]
        if options.soak:
            record["soak"] = soak(options, pruned)
        if options.fuzz:
            record["fuzz"] = send_fuzz(options, pruned)
        if options.kill:
            from llava.eval.timing.server_load import survives_kill

            record["same_answer_after_kill"] = survives_kill(pruned)
            print(f"killed with SIGKILL and started again: the same answer: {record['same_answer_after_kill']}")
    print_json(record, options)


def _numbers(text: str) -> list[int]:
    try:
        found = [int(word) for word in text.split(",") if word.strip()]
    except ValueError:
        found = [0]
    if any(one < 1 for one in found):
        raise UserError(f"--clients takes numbers with commas, such as 1,8,32; got {text!r}")
    return found


def measure_cells(options: Options, words: list[str], clients: list[int]) -> list[dict[str, Any]]:
    """Measure every server under every load; print a table row for each cell."""
    from tqdm import tqdm

    from llava.eval.timing.server_load import QUESTIONS, ServerProcess, body_of, measure, scene_url

    best: dict[tuple, dict[str, Any]] = {}
    todo = options.rounds * len(SERVERS) * len(clients) * 2
    with tqdm(total=todo, unit="cell", disable=not clients) as bar:
        for turn in range(options.rounds):
            for name, more in SERVERS.items() if clients else ():
                own = ["--pruning-config", options.pruning_config] if options.pruning_config and not more else more
                with ServerProcess([*words, *own]) as server:
                    measure(server.url, [body_of(scene_url(0), QUESTIONS[0], options.new_tokens)] * 2, 1)  # warm up
                    for images in ("same", "different"):
                        for count in clients:
                            first = 0 if images == "same" else 1_000 * (1 + count + 100 * turn)
                            step = 0 if images == "same" else 1
                            bodies = [
                                body_of(scene_url(first + step * n), QUESTIONS[n % 4], options.new_tokens)
                                for n in range(max(options.requests, count))
                            ]
                            key = (name, images, count)
                            found = measure(server.url, bodies, count).to_dict()
                            if key not in best or found["requests_per_s"] > best[key]["requests_per_s"]:
                                best[key] = found
                            bar.update()
    cells = [dict(zip(("server", "images", "clients"), key, strict=True)) | found for key, found in best.items()]
    if cells:
        print_cells(cells)
    return cells


def print_cells(cells: list[dict[str, Any]]) -> None:
    """Print the cells as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    heads = ["images", "clients", "server", "requests/s", "tokens/s", "first token ms", "95%", "answer ms"]
    names = ["images", "clients", "server", "requests_per_s", "tokens_per_s", "first_token_ms", "first_token_p95_ms"]
    for head in heads:
        table.add_column(head, justify="left" if head in ("images", "server") else "right")
    for cell in sorted(cells, key=lambda one: (one["images"], one["clients"])):
        table.add_row(*(str(cell[name]) for name in [*names, "answer_ms"]))
    Console().print(table)


def soak(options: Options, words: list[str]) -> dict[str, Any]:
    """Run the mixed load and return what memory did: MB at the start, after a fifth, and at the end."""
    from llava.eval.timing.server_load import ServerProcess, mixed_load

    samples: list[tuple[float, int]] = []
    with ServerProcess([*words, "--prefix-cache", str(64 << 20)]) as server:
        done = mixed_load(server, options.soak, 8, options.new_tokens, lambda at, size: samples.append((at, size)))
        left = server.figure("llava_waiting_requests")
        vanished = server.figure("llava_cancelled_total")
        errors = server.errors
    megabytes = [round(size / 1e6, 1) for _, size in samples]
    settled = megabytes[len(megabytes) // 5 :]
    record = {
        "seconds": options.soak,
        "requests": dict(sorted(done.items())),
        "vanished": vanished,
        "waiting_at_the_end": left,
        "start_mb": megabytes[0],
        "settled_mb": settled[0],
        "end_mb": settled[-1],
        "most_mb": max(megabytes),
        "logged": errors.count("\n"),
    }
    print(
        f"{sum(done.values())} requests of mixed load in {options.soak:g} s: {record['start_mb']} MB at the start, "
        f"{record['settled_mb']} MB after a fifth, {record['end_mb']} MB at the end; {record['logged']} lines logged"
    )
    if errors:
        print(errors[-2000:], file=sys.stderr)
    return record


def send_fuzz(options: Options, words: list[str]) -> dict[str, Any]:
    """Send fuzzed requests; return how many got which status."""
    from llava.eval.timing.server_load import ServerProcess, fuzz

    with ServerProcess(words) as server:
        try:
            statuses = fuzz(server.url, options.fuzz, options.seed)
        except UserError as error:
            raise UserError(f"{error}; exit status {server.process.poll()}; {server.errors[-2000:]}") from None
        alive = server.process.poll() is None
        errors = server.errors
    record = {"requests": options.fuzz, "statuses": {str(key): statuses[key] for key in sorted(statuses)}}
    print(f"{options.fuzz} fuzzed requests: {record['statuses']}; the server is {'up' if alive else 'DOWN'}")
    if errors:
        print(errors[-2000:], file=sys.stderr)
    return record | {"alive": alive, "logged": errors.count("\n")}


def write_wide_model(folder: Path, layers: int) -> Path:
    """Write the small model with a random decoder of LLaVA-1.5-7B's width (4096, MLP 11008, 32 heads), in bfloat16.

    Tower, tokenizer and prompts are the small model's: 144 visual tokens per image.
    """
    import json
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    from llava.model.language_model.configuration_llava import read_config, read_vision_config
    from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM

    made = folder / f"llava-wide-{layers}"
    shutil.copytree(SMALL_MODEL, made)
    config = json.loads((made / "config.json").read_text())
    config |= {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_key_value_heads": 32}
    config |= {"num_hidden_layers": layers, "eos_token_id": None}
    (made / "config.json").write_text(json.dumps(config))
    (made / "generation_config.json").unlink(missing_ok=True)
    late = {"mode": ["shallow", "middle", "deep"], "shallow_mid_layer": max(layers // 4, 1), "layer_threshold": 1.0}
    (made / "pruning.json").write_text(json.dumps(late | {"tokens_threshold": 0.0, "exit_threshold": 0.0}))
    given = read_config(made)
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = LlavaLlamaForCausalLM(given, read_vision_config(made / "vision_tower", given))
    finally:
        torch.set_default_dtype(default)
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    small = load_file(SMALL_MODEL / "model.safetensors")
    fitting = {
        name: small[name].to(value.dtype)
        for name, value in weights.items()
        if name in small and small[name].shape == value.shape
    }
    save_file(weights | fitting, made / "model.safetensors", metadata={"format": "pt"})
    return made


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_command(Options, work, argv, prog=PROG, description=__doc__, epilog=EPILOG, interrupted="interrupted")


if __name__ == "__main__":
    sys.exit(main())
