"""The chat on the small model: answers, turns, commands, the terminal's keys, and Ctrl-C in the middle of an answer."""

from __future__ import annotations

import io
import logging
import signal
import threading

import numpy as np
import pytest
import torch
from method_examples import EXAMPLES
from PIL import Image
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.console import Console
from transformers.utils.logging import warning_once

from llava import PruningConfig
from llava.cli import ModelOptions
from llava.constants import IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.loaded import LoadedModel
from llava.model.pruning.methods import METHODS
from llava.serve.chat import Chat, Sampling
from llava.serve.cli_pruning import SMALL_MODEL
from llava.serve.generation import AnswerStream
from llava.serve.loop import COMMANDS, NAMES, ChatLoop
from llava.serve.prompt import history_file, open_history, plain_reader, terminal_reader
from llava.tiny.scenes import render

PRUNING = PruningConfig.from_dict(
    {"mode": ["shallow", "middle", "deep"], "layer_threshold": 0.995, "tokens_threshold": 0.2, "shallow_mid_layer": 6}
)
QUESTIONS = ("What color is the circle?", "Is there a blue cross?", "How many objects are there?")


@pytest.fixture(scope="module")
def loaded():
    return LoadedModel.from_path(ModelOptions(model_path=str(SMALL_MODEL), device="cpu"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(2):
        Image.fromarray(render(np.random.default_rng(number))[0]).save(folder / f"scene {number}.png")
    return folder


@pytest.fixture
def chat(loaded, pictures):
    chat = Chat(loaded, PRUNING, Sampling(max_new_tokens=40))
    chat.see(Image.open(pictures / "scene 0.png").convert("RGB"), "scene 0.png")
    return chat


def reference(loaded, picture, turns, **options) -> str:
    """Answer the last of `turns` [(question, answer or None)] with `generate` itself."""
    tokenizer, model = loaded.tokenizer, loaded.model
    conversation = conv_templates["vicuna_v1"].copy()
    for number, (question, answer) in enumerate(turns):
        conversation.append_message(conversation.roles[0], f"<image>\n{question}" if number == 0 else question)
        conversation.append_message(conversation.roles[1], answer)
    ids = tokenizer_image_token(conversation.get_prompt(), tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt")[None]
    pixels = process_images([Image.open(picture)], loaded.processor, model.config)
    output = model.generate(ids, images=pixels, do_sample=False, max_new_tokens=40, **options)
    return tokenizer.decode(output[0], skip_special_tokens=True).strip()


def serve(chat, *lines):
    """Feed lines to the loop as a pipe would; return what was answered and what was noted."""
    answers, notes = io.StringIO(), io.StringIO()
    reader = plain_reader(io.StringIO("\n".join(lines)))
    ChatLoop(chat, reader, answers, Console(file=notes, width=100)).run()
    return answers.getvalue().splitlines(), notes.getvalue()


@pytest.mark.parametrize("pruned", [False, True])
def test_every_turn_answers_like_generate_on_the_whole_conversation(chat, loaded, pictures, pruned):
    chat.pruning_on = pruned
    turns = []
    for question in QUESTIONS:
        pieces = []
        reply = chat.ask(question, pieces.append)
        options = {"pruning_config": PRUNING} if pruned else {}
        assert reply.text == reference(loaded, pictures / "scene 0.png", [*turns, (question, None)], **options)
        assert "".join(pieces) == reply.text and reply.ended == "end"
        assert (reply.trace is not None) == pruned
        assert reply.trace is None or reply.trace.prompt_tokens == reply.prompt_tokens
        turns.append((question, reply.text))
    assert chat.turns == len(QUESTIONS)


def test_without_an_image_it_chats_in_text(loaded):
    chat = Chat(loaded, PRUNING, Sampling(max_new_tokens=5))
    answers, notes = serve(chat, "hello", "/trace")
    assert chat.last.visual_start is None and chat.last.trace.visual_tokens == 0
    assert len(answers) == 1 and "no image" in notes


def test_all_commands_in_one_session(chat, pictures):
    answers, notes = serve(
        chat,
        "/trace",
        QUESTIONS[0],
        "/trace",
        "/clear",
        QUESTIONS[0],
        "/prune off",
        "/clear",
        QUESTIONS[0],
        "/trace",
        "/prune on",
        "/prune",
        "/prune maybe",
        f"/image '{pictures}/scene 1.png'",
        f"/image {pictures}/scene\\ 1.png",
        "/image",
        "/image /nothing/here.png",
        "",
        "/imgae x",
        f"{pictures}/scene 0.png",
        "what is <image>?",
        "/help",
        "/quit",
        "never asked",
    )
    assert len(answers) == 3 and answers[0] == answers[1]
    assert chat.image.name.endswith("scene 1.png") and chat.turns == 0 and chat.pruning_on
    for expected in (
        "no trace yet",
        f"filter layer {chat_filter(notes)}",
        "influence (L2)",
        "KV cache:",
        "a new conversation",
        "pruning was off",
        "pruning is off",
        '"shallow_mid_layer": 6',
        "takes on or off, got 'maybe'",
        "'/nothing/here.png': no such file",
        "unknown command /imgae; did you mean /image?",
        f"to load this file: /image {pictures}/scene 0.png",
        "the question holds <image>",
        "pruning off ·",
        *COMMANDS,
    ):
        assert expected in notes
    assert "\x1b" not in notes


def test_settings_change_while_it_runs_and_answers_are_those_of_a_new_chat(loaded, chat, pictures, tmp_path):
    (tmp_path / "own config.json").write_text('{"method": "fastv", "k": 2}')
    answers, notes = serve(
        chat,
        QUESTIONS[0],
        "/set tokens_threshold 0.05",
        QUESTIONS[1],
        "/set tokens_treshold 0.05",
        "/set tokens_threshold",
        "/set shallow_mid_layer 99",
        '/set mode ["middle"]',
        "/set {",
        f"/set '{tmp_path}/own config.json'",
        QUESTIONS[2],
        "/set",
    )
    for expected in (
        "did you mean 'tokens_threshold'",
        "/set tokens_threshold lacks a value",
        "99",
        '"mode": ["middle"]',
        "is not JSON",
        '"method": "fastv"',
    ):
        assert expected in notes
    assert chat.pruning.method == "fastv" and chat.last.trace.cuts[0][0] == 1
    fresh = Chat(loaded, PruningConfig.of({"method": "fastv", "k": 2}), Sampling(max_new_tokens=40))
    fresh.see(Image.open(pictures / "scene 0.png").convert("RGB"), "scene 0.png")
    fresh.said = chat.said[:-1]
    assert fresh.ask(QUESTIONS[2]).text == answers[2]


@pytest.mark.parametrize("question", ["what \ud83d is this?", "what\udce9?"])
def test_text_that_is_not_utf_8_is_one_line_and_the_session_lives(chat, question):
    answers, notes = serve(chat, question, f"/image {question}", "/" + question, QUESTIONS[0])
    assert len(answers) == 1 and "the question is not valid UTF-8 at character" in notes and chat.turns == 1


def test_a_backslash_continues_a_question_on_the_next_line(chat, monkeypatch):
    asked = []
    monkeypatch.setattr(chat, "ask", lambda question, write: asked.append(question))
    serve(chat, "one\\", "two\\", "three", "four\\")
    assert asked == ["one\ntwo\nthree", "four"]


def chat_filter(notes: str) -> str:
    return notes.split("filter layer ")[1].split(" ")[0]


def test_the_dim_line_and_the_tables_say_what_the_trace_says(chat):
    _, notes = serve(chat, QUESTIONS[0], "/trace")
    trace = chat.last.trace
    saved = 100 * (1 - trace.flops() / trace.dense_flops())
    assert f"kept {len(trace.kept)} of {trace.visual_tokens} visual tokens" in notes
    assert f"filter layer {trace.filter_layer}" in notes and f"FLOPs −{saved:.1f}%" in notes
    assert all(f"{influence:.3f}" in notes for influence in sorted(trace.influence)[-20:])
    patch = divmod(trace.kept[0] - chat.last.visual_start, 12)
    assert f"{patch[0]}, {patch[1]} of 12×12" in notes


@pytest.fixture
def rambling(chat):
    """Random tokens: an answer that does not end by itself soon."""
    torch.manual_seed(1)
    chat.sampling = Sampling(temperature=1e4, max_new_tokens=300)
    chat.model.generation_config.eos_token_id = -1
    yield chat
    chat.model.generation_config.eos_token_id = 2


def test_ctrl_c_keeps_what_was_said_and_the_chat_goes_on(rambling):
    before = signal.getsignal(signal.SIGINT)
    pieces = []

    def interrupt_at_third(text):
        pieces.append(text)
        if len(pieces) == 3:
            signal.raise_signal(signal.SIGINT)

    reply = rambling.ask(QUESTIONS[0], interrupt_at_third)
    assert reply.ended == "stopped" and 3 <= reply.new_tokens <= 10
    assert rambling.said[-1].answer == reply.text == "".join(pieces)
    assert reply.trace is not None and signal.getsignal(signal.SIGINT) is before
    rambling.sampling = Sampling(max_new_tokens=3)
    assert rambling.ask(QUESTIONS[1]).ended in ("limit", "end") and rambling.turns == 2


def test_a_second_ctrl_c_ends_the_answer_at_once_and_pruning_is_undone(rambling):
    def interrupt_twice(text):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    reply = rambling.ask(QUESTIONS[0], interrupt_twice)
    assert reply.ended == "stopped" and reply.text
    assert "forward" not in vars(rambling.model.model)


def test_answers_work_outside_the_main_thread(chat):
    replies = []
    thread = threading.Thread(target=lambda: replies.append(chat.ask(QUESTIONS[0])))
    thread.start()
    thread.join()
    assert replies[0].ended == "end"


def test_the_token_limit_and_the_context_are_kept(rambling):
    rambling.sampling = Sampling(temperature=1e4, max_new_tokens=7)
    reply = rambling.ask(QUESTIONS[0])
    assert (reply.new_tokens, reply.ended) == (7, "limit")
    rambling.sampling = Sampling(temperature=1e4, max_new_tokens=5000)
    reply = rambling.ask(QUESTIONS[0])
    assert reply.prompt_tokens + reply.new_tokens == rambling.context_len and reply.ended == "limit"
    turns = rambling.turns
    with pytest.raises(ValueError, match="/clear"):
        rambling.ask(QUESTIONS[0])
    assert rambling.turns == turns
    rambling.clear()
    rambling.sampling = Sampling(max_new_tokens=2)
    assert rambling.ask(QUESTIONS[0]).new_tokens == 2


def test_a_seed_makes_sampling_repeatable(rambling):
    rambling.sampling = Sampling(temperature=5.0, top_p=0.9, max_new_tokens=12)
    texts = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        rambling.clear()
        texts.append(rambling.ask(QUESTIONS[0]).text)
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.filterwarnings("error")
def test_a_checkpoints_own_sampling_settings_do_not_disturb_greedy_answers(chat, monkeypatch):
    warned = []
    warning_once.cache_clear()  # what another test has seen already counts too
    handler = logging.Handler()
    handler.emit = warned.append
    monkeypatch.setattr(logging.getLogger("transformers"), "handlers", [handler])
    monkeypatch.setattr(logging.getLogger("transformers"), "level", logging.WARNING)
    expected = chat.ask(QUESTIONS[0]).text
    for name, value in (("temperature", 0.9), ("top_p", 0.6)):
        monkeypatch.setattr(chat.model.generation_config, name, value)
    chat.clear()
    assert chat.ask(QUESTIONS[0]).text == expected
    assert warned == []
    chat.model.generate(torch.tensor([[1, 5]]), do_sample=False, max_new_tokens=1)
    assert warned  # else this test would see nothing


class Letters:
    """A tokenizer whose tokens are the bytes of a text."""

    def decode(self, ids, skip_special_tokens=True):
        return bytes(ids).decode("utf-8", errors="replace")


@pytest.mark.parametrize("stop", [None, "###"])
@pytest.mark.parametrize("said", ["plain", "  a # b ## c ", "é ∑ 漢字", "cut ### here", "ends in ##", "###", ""])
def test_streamed_pieces_join_to_the_final_text(said, stop):
    pieces = []
    stream = AnswerStream(Letters(), pieces.append, [stop])
    stream.put(torch.tensor([[1, 2, 3]]))
    for byte in said.encode():
        stream.put(torch.tensor([byte]))
        assert "\ufffd" not in stream.text
    stream.end()
    expected = said.split("###")[0].strip() if stop else said.strip()
    assert "".join(pieces) == stream.text == expected
    assert stream.tokens == len(said.encode())


def test_control_characters_of_an_answer_do_not_reach_the_terminal(chat, monkeypatch):
    monkeypatch.setattr(chat, "ask", lambda question, write: write("a\x1b[2Jb\x07\r[red]c"))
    assert serve(chat, "hi")[0] == ["a[2Jb[red]c"]


@pytest.fixture
def keyboard(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        yield pipe


def test_keys_of_the_prompt(keyboard):
    read = terminal_reader(NAMES)
    keyboard.send_text("hello world\x17there\r")  # Ctrl-W deletes a word
    assert read() == "hello there"
    keyboard.send_text("half\x03")
    with pytest.raises(KeyboardInterrupt):
        read()
    keyboard.send_text("\x1b[A\r")
    assert read() == "hello there"  # the arrow brings back the last line
    keyboard.send_text("/tr\t")
    threading.Timer(0.5, keyboard.send_text, ["\r"]).start()  # completing runs beside the reading of keys
    assert read() == "/trace"
    for keys in ("one\\\rtwo\r", "one\x1b\rtwo\r", "\x1b[200~one\ntwo\x1b[201~\r"):  # backslash, Alt-Enter, a paste
        keyboard.send_text(keys)
        assert read() == "one\ntwo"
    keyboard.send_text("\x12hello\r\r")  # Ctrl-R searches
    assert read() == "hello there"
    keyboard.send_bytes(b"what\xe9\r")  # not UTF-8: the history takes it, the question is refused later
    assert read().startswith("what")
    keyboard.send_text("\x04")
    with pytest.raises(EOFError):
        read()
    assert "hello there" in history_file().read_text()


def test_the_loop_on_a_keyboard(keyboard, chat):
    answers, notes = io.StringIO(), io.StringIO()
    loop = ChatLoop(chat, terminal_reader([]), answers, Console(file=notes, width=100))
    keyboard.send_text(f"{QUESTIONS[0]}\rhalf a line\x03/clear\r{QUESTIONS[0]}\r\x04")
    loop.run()
    said = answers.getvalue().splitlines()
    assert len(said) == 2 and said[0] == said[1] and notes.getvalue().count("kept ") == 2


def test_history_without_a_place_to_write_stays_in_memory(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    history = open_history(blocked / "below" / "history")
    history.append_string("line")
    assert history.get_strings() == ["line"] and not (blocked / "below").exists()
    kept = open_history(tmp_path / "state" / "history")
    kept.append_string("line")
    assert list(open_history(tmp_path / "state" / "history").load_history_strings()) == ["line"]
    assert (tmp_path / "state" / "history").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("method", METHODS)
def test_the_tables_show_every_method_s_cuts(chat, method):
    twelve = {"keep": [144, 144, 100, 80, 60, 40, 20, 20, 9, 9, 0, 0], "visual_tokens": 144}
    chat.pruning = PruningConfig.from_dict(EXAMPLES[method] | (twelve if method == "fitprune" else {}))
    answers, notes = serve(chat, QUESTIONS[0], "/trace")
    assert answers
    for after, left in chat.last.trace.cuts:
        assert f"keeps {len(left)}" in notes or after + 1 == chat.last.trace.exit_layer
    assert ("input" in notes) == any(after < 0 for after, _ in chat.last.trace.cuts)
