"""lmms-eval's requests as `Request`s: what is in their argument tuples, and in which order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llava.eval.lmms_eval.arguments import decoding_of
from llava.eval.lmms_eval.asking import Likelihood, Request, RequestError
from llava.eval.lmms_eval.messages import of_messages, of_text

Documents = Mapping[str, Any]
"""Task name → split → document number → document: lmms-eval's `task_dict`."""


def chat_generation(arguments: tuple, documents: Documents) -> Request:
    """Read a chat model's `(context, doc_to_messages, generation_kwargs, document, task, split)`.

    The context is not used: the messages hold the whole question. Raises `RequestError` naming the request.
    """
    _, to_messages, settings, number, task, split = _six(arguments)
    name = f"{task}/{split}/{number}"
    return Request(
        name,
        prompt=(task, split, number),
        read=lambda: of_messages(to_messages(documents[task][split][number])),
        wanted=_named(name, decoding_of, settings),
    )


def simple_generation(arguments: tuple, documents: Documents) -> Request:
    """Read a simple model's `(context, generation_kwargs, doc_to_visual, document, task, split)`."""
    context, settings, to_visual, number, task, split = _six(arguments)
    name = f"{task}/{split}/{number}"
    return Request(
        name,
        prompt=(task, split, number, context),
        read=lambda: of_text(context, to_visual(documents[task][split][number])),
        wanted=_named(name, decoding_of, settings),
    )


def likelihood(arguments: tuple, documents: Documents) -> Request:
    """Read `(context, continuation, doc_to_visual, document, task, split)`; see `likelihood_result`."""
    context, continuation, to_visual, number, task, split = _six(arguments)
    name = f"{task}/{split}/{number}"
    if callable(continuation):
        continuation = _named(name, continuation, documents[task][split][number])
    return Request(
        name,
        prompt=(task, split, number, context),
        read=lambda: of_text(context, to_visual(documents[task][split][number])),
        wanted=str(continuation),
    )


def likelihood_result(arguments: tuple, found: Likelihood) -> tuple[float, bool]:
    """Return what lmms-eval does the right thing with: a log-probability, or for a choice its negative.

    Its models are documented to return log-probabilities, and its perplexity (`output_type: loglikelihood`, where the
    continuation is a function of the document) takes them as such. But `output_type: multiple_choice`, whose
    continuations are texts, chooses the *smallest* value (lmms-eval 0.6 and 0.7): it expects losses.
    """
    loss = isinstance(arguments[1], str)
    return (-found.logprob if loss else found.logprob), found.greedy


def _six(arguments: tuple) -> tuple:
    if len(arguments) != 6:
        raise ValueError(
            f"a request has {len(arguments)} arguments, 6 are known here: the metric acc_mutual_info, or a version of "
            "lmms-eval that this plug-in does not know"
        )
    return arguments


def _named(name: str, read: Any, given: Any) -> Any:
    try:
        return read(given)
    except ValueError as error:
        raise RequestError(f"{name}: {error}") from error
