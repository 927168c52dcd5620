"""The trained model's tokenizer: a sentencepiece model with byte fallback, trained on the phrases of the questions.

Every word of the questions is one piece; other words become letters, and unknown characters bytes, so that any text can
be encoded and decoded. Capitals and digits are single pieces, since a sign has three of them. The same phrases give the
same bytes.
"""

import io
import string
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from llava.conversation import conv_templates
from llava.files import write_json
from llava.tiny.questions import PLURAL, RELATIONS, SHORT_ANSWER, YES_OR_NO
from llava.tiny.scenes import RADIUS
from llava.tiny.worlds import COLORS, DIGITS, LETTERS, SHAPES

_QUESTIONS = (
    "What color is the {shape}?",
    "What shape is the {color} object?",
    "Is the {color} {shape} large or small?",
    "Is the {color} {shape} on the left or on the right?",
    "Is the {color} {shape} at the top or at the bottom?",
    "Is there a {color} {shape} in this image?",
    "How many {color} objects are there?",
    "Are there 3 {plural} in this image?",
    "Is the {shape} {color}?",
    "Is the {color} {shape} {relation} the {color} {shape}?",
    "What is written on the sign?",
    'Does the sign say "A"?',
    "What digit is on the card?",
    "Describe the image from left to right.",
    "Describe the image from top to bottom.",
)
_ANSWERS = (*COLORS, *SHAPES, *RADIUS, "Yes", "No", "left", "right", "top", "bottom")
_CAPTION = "a large red cross, a sign A, a card A."
UNK, BOS, EOS = range(3)
PAD = UNK
_VOCABULARY = 661
_REPEATS = 4
# Roles are spelt in capitals, which would make pieces of sign texts: they get one chain of pieces each, from pairs that
# no sign of the evaluation holds.
_ROLES = ("SS", "SSI", "SSIS", "SSIST", "SSISTA", "SSISTAN", "SSISTANT", "▁ASSISTANT", "▁US", "▁USE", "▁USER")


def phrases() -> Iterator[str]:
    """Yield the texts that the pieces come from: prompts, questions as they follow the image, answers, characters."""
    yield conv_templates["vicuna_v1"].system
    names = zip(COLORS, [*SHAPES, *SHAPES], [*PLURAL.values()] * 2, [*RELATIONS] * 2, strict=False)
    for color, shape, plural, relation in names:
        for question in _QUESTIONS:
            text = question.format(color=color, shape=shape, plural=plural, relation=relation)
            yield from (f"\n{text}", f"\n{text}{SHORT_ANSWER}", f"{text}{YES_OR_NO}")
    yield from _ANSWERS
    yield _CAPTION
    for character in LETTERS + DIGITS:
        yield from (character, f'"{character}' if character in LETTERS else f"a{character}a")
    for character in string.ascii_lowercase:
        yield character
    for character in string.punctuation:
        yield f"a{character}a"


@lru_cache(maxsize=1)
def train_pieces() -> bytes:
    """Train the sentencepiece model and return its file; deterministic."""
    texts = [text for text in phrases() for _ in range(_REPEATS)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=_VOCABULARY,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        unk_id=UNK,
        bos_id=BOS,
        eos_id=EOS,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    proto = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())
    lowest = min(piece.score for piece in proto.pieces)
    for place, piece in enumerate(_ROLES, start=1):
        proto.pieces.add(piece=piece, score=lowest - place)
    proto.trainer_spec.vocab_size = len(proto.pieces)
    return proto.SerializeToString(deterministic=True)


class PieceTokenizer:
    """What `llava.tiny.export` writes: tokenizer.model and tokenizer_config.json, as LLaVA's checkpoints have them.

    Its length is the number of pieces. `load_pretrained_model` reads the files with transformers' LlamaTokenizer.
    """

    def __init__(self, max_length: int):
        self.max_length = max_length

    def __len__(self) -> int:
        return len(sentencepiece.SentencePieceProcessor(model_proto=train_pieces()))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the two files into `folder`, which is made if absent."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.model").write_bytes(train_pieces())
        settings = {
            "tokenizer_class": "LlamaTokenizer",
            "add_bos_token": True,
            "add_eos_token": False,
            "unk_token": "<unk>",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "pad_token": "<unk>",
            "padding_side": "left",
            "legacy": True,
            "clean_up_tokenization_spaces": False,
            "model_max_length": self.max_length,
        }
        write_json(folder / "tokenizer_config.json", settings)
