"""The two classes that lmms-eval loads as `visipruner`: for chat tasks, and for simple ones (`--force_simple`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from loguru import logger

from llava.cli import ModelOptions
from llava.eval.lmms_eval import requests as reading
from llava.eval.lmms_eval.answering import RequestAnswerer
from llava.eval.lmms_eval.arguments import batch_size_of, pixels_of, prefix_cache_of, pruning_of, rule_of
from llava.model.loaded import LoadedModel
from llava.model.preflight import check_model, config_of


class Scored(tuple, GenerationResult):
    """`(value, greedy)`, as `loglikelihood` is to return it, in the only form that lmms-eval 0.7 leaves whole.

    The evaluator converts a plain tuple to text, on which its multiple-choice scoring fails, but keeps the `text` of a
    `GenerationResult`. The response cache would convert the pair, too; it skips results whose stripped text is empty.
    """

    def __new__(cls, value: float, greedy: bool) -> Scored:
        """Make the pair."""
        return super().__new__(cls, (value, greedy))

    def __init__(self, value: float, greedy: bool):
        pass

    def __getnewargs__(self) -> tuple[float, bool]:
        return tuple(self)

    text = property(lambda self: self)
    token_counts = None

    def strip(self) -> str:
        """Return nothing, so that the response cache keeps nothing."""
        return ""


class VisiPruner(lmms):
    """Any model of `load_pretrained_model`, pruned.

    pretrained, model_base, conv_mode, dtype, attn_implementation:
        as in `llava.eval.model_vqa_loader` and `load_pretrained_model`
    pruning:
        a JSON object (its text), or `none`; see `pruning_of`
    min_pixels, max_pixels:
        smallest and largest image in pixels (Qwen families)
    frames, fps:
        frames of a video, as in `llava.cli.VideoOptions`
    prefix_cache:
        `auto` (default): what requests about one image have in common is read once, with 2 GiB; `off`; or a number of
        bytes. `reuse_prefix` and `prefix_cache_bytes` are older words for it
    batch_size, device:
        lmms-eval's; with several processes each takes its own device
    """

    def __init__(
        self,
        pretrained: str,
        pruning: Any = None,
        model_base: str | None = None,
        conv_mode: str | None = None,
        dtype: str | None = None,
        attn_implementation: str = "sdpa",
        min_pixels: int | str | None = None,
        max_pixels: int | str | None = None,
        frames: int | str | None = None,
        fps: float | str | None = None,
        prefix_cache: int | str = "auto",
        reuse_prefix: bool | str | None = None,
        prefix_cache_bytes: int | str | None = None,
        batch_size: int | str = 1,
        device: str | None = None,
    ):
        super().__init__()
        config, size = pruning_of(pruning), batch_size_of(batch_size)
        cache = prefix_cache_of(prefix_cache, reuse_prefix, prefix_cache_bytes)
        self.rule = rule_of(frames, fps)
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        options = ModelOptions(
            model_path=str(pretrained),
            model_base=model_base,
            conv_mode=conv_mode,
            device=str(self.accelerator.device) if self._world_size > 1 else device or "auto",
            dtype=dtype or "auto",
            min_pixels=pixels_of("min_pixels", min_pixels),
            max_pixels=pixels_of("max_pixels", max_pixels),
        )
        config = config_of(options) if pruning is None else config
        config = check_model(options, config).config
        loaded = LoadedModel.from_path(options, attn_implementation=attn_implementation)
        self.device = loaded.model.device
        self.answerer = RequestAnswerer(loaded.model, loaded.inputs, config, size, cache)
        logger.info("visipruner: {}", "dense" if config is None else config.to_dict())

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Return (value, greedy) per request; for choices the value is a loss, see `likelihood_result`."""
        asked = [reading.likelihood(request.args, self.task_dict, self.rule) for request in requests]
        found = self._logged(self.answerer.likelihoods, asked)
        return [Scored(*reading.likelihood_result(r.args, value)) for r, value in zip(requests, found, strict=True)]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Return an answer per request."""
        read = reading.simple_generation if self.is_simple else reading.chat_generation
        asked = [read(request.args, self.task_dict, self.rule) for request in requests]
        return self._logged(self.answerer.generate, asked)

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Refuse multi-round tasks: a later question depends on earlier answers and cannot be batched."""
        raise NotImplementedError("visipruner answers no multi-round tasks: choose tasks of output_type generate_until")

    def clean(self) -> None:
        """Release the model; lmms-eval calls it when all is answered."""
        self.answerer = None
        super().clean()

    def _logged(self, ask: Callable, asked: list[reading.Request]) -> list[Any]:
        found = ask(asked, progress=self.rank == 0)
        if self.answerer.pruning is not None:
            costs = self.answerer.costs
            logger.info(
                "visipruner: {} prompts read pruned, {:.1f}% of the visual tokens' FLOPs saved",
                costs.questions,
                100 * (1 - costs.visual_flops_share),
            )
        if (reused := self.answerer.reused).found:
            logger.info(
                "visipruner: {} of {} prompts with images found theirs known, {:.1f}% of all tokens did not run again",
                reused.found,
                reused.prompts,
                100 * reused.share,
            )
        return found


class VisiPrunerSimple(VisiPruner):
    """Takes a text and its visuals; what tasks scored by likelihood need (`--force_simple`)."""

    is_simple = True


class VisiPrunerChat(VisiPruner):
    """Takes chat messages."""

    is_simple = False
