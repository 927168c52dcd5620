"""The small model's tokenizer: whole words of its phrases, everything else letter by letter.

A pre-tokenizer cuts text into words (with the space before them), single capitals and digits, punctuation and white
space; a piece that is in the vocabulary is one token, any other is spelt in characters, and a character that is not
there becomes `<unk>`.
The shipped weights fix the order of the vocabulary: append to it, never reorder.
"""

import re

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from llava.tiny.questions import PLURAL, RELATIONS, SHORT_ANSWER, YES_OR_NO
from llava.tiny.scenes import COLORS, RADIUS, SHAPES

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: "
)
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
PAD, BOS, EOS, UNK = range(4)
SPLIT = r" ?USER| ?ASSISTANT| ?[A-Z]?[a-z]+| ?[A-Z0-9]|[^\w\s]|\s"
_CAPITALS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_CAPTION_WORDS = ("image", "from", "to", "left", "right", "top", "bottom", "a", "sign", "card", "and")
_CHARACTERS = "abcdefghijklmnopqrstuvwxyz.,?!'\"-:\n "


def vocabulary() -> list[str]:
    """Return the 195 pieces in the order of their ids; the first four are `<pad>`, `<s>`, `</s>` and `<unk>`."""
    phrases = [
        SYSTEM,
        " ASSISTANT:",
        SHORT_ANSWER,
        YES_OR_NO,
        '"',
        "What color shape is the object on sign written digit card many How objects are there in this image",
        *(" " + word for word in (*COLORS, *SHAPES, *RADIUS, "Yes", "No", "left", "right", "top", "bottom")),
        *(" " + word for word in (*PLURAL.values(), *RELATIONS)),
        "Is the large or small on the left or on the right? at the top or at the bottom? Is there a an Are there "
        "Does the sign say",
        "What color shape How many",
    ]
    pieces = [*SPECIAL, " USER", " ASSISTANT"]
    pieces += [piece for phrase in phrases for piece in re.findall(SPLIT, phrase)]
    pieces += [*_CAPITALS, *(" " + c for c in _CAPITALS), *_CHARACTERS]
    pieces += ["Describe", *(" " + w for w in _CAPTION_WORDS), "."]
    return list(dict.fromkeys(pieces))


def build_tokenizer(max_length: int = 512) -> PreTrainedTokenizerFast:
    """Build the tokenizer: `<s>` first, padding on the left, decoding gives the text back with no space added."""
    pieces = vocabulary()
    # no merges: a piece is either in the vocabulary as a whole (ignore_merges) or falls apart into its characters
    backend = Tokenizer(
        models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=[], unk_token=SPECIAL[UNK], ignore_merges=True)
    )
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    backend.decoder = decoders.Fuse()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[(SPECIAL[BOS], BOS)]
    )
    backend.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=SPECIAL[PAD],
        bos_token=SPECIAL[BOS],
        eos_token=SPECIAL[EOS],
        unk_token=SPECIAL[UNK],
        padding_side="left",
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
