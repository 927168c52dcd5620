"""Cases of families that cut images into tiles or keep their shape: Idefics, SmolVLM, Pixtral's, Ovis2, GOT-OCR2, ….

Every maker takes the vocabulary and the placeholder ids, for the checkpoints of tests/family_checkpoints_tiles.py.
"""

from __future__ import annotations

import torch
import transformers as hf
from family_case import END, IMAGE, START, VOCABULARY, Case, fields

TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


def text(kind: str, vocabulary: int, **changes):
    """The text config of a decoder."""
    own = {"MistralConfig": {"sliding_window": None}, "Qwen3Config": {"head_dim": 12}}.get(kind, {})
    return getattr(hf, kind)(**fields(vocab_size=vocabulary, max_position_embeddings=1024, **own, **changes))


def idefics2(vocabulary=VOCABULARY, image=IMAGE):
    perceiver = {"resampler_n_latents": 6, "resampler_depth": 1, "resampler_n_heads": 2, "resampler_head_dim": 12}
    config = hf.Idefics2Config(
        text_config=text("MistralConfig", vocabulary),
        vision_config=hf.Idefics2VisionConfig(image_size=24, patch_size=4, **TOWER),
        perceiver_config=hf.Idefics2PerceiverConfig(hidden_size=48, num_key_value_heads=1, **perceiver),
        image_token_id=image,
    )
    return hf.Idefics2ForConditionalGeneration(config)


def idefics3(vocabulary=VOCABULARY, image=IMAGE, kind="Idefics3"):
    config = getattr(hf, f"{kind}Config")(
        text_config=text("LlamaConfig", vocabulary),
        vision_config=getattr(hf, f"{kind}VisionConfig")(image_size=24, patch_size=4, **TOWER),
        scale_factor=2,
        image_token_id=image,
        pad_token_id=0,
    )
    return getattr(hf, f"{kind}ForConditionalGeneration")(config)


def tiled(tokens):
    """One image of `tokens` placeholders, or three of them with text before each: tiles with their rows and columns."""

    def media(model, letter, generator):
        tiles = 1 if letter == "i" else 3
        ids = [id for tile in range(tiles) for id in (START, 80 + tile, *[IMAGE] * tokens)] + [END]
        return ids, {"pixel_values": torch.randn(tiles, 1, 3, 24, 24, generator=generator)}

    return media


def pixtral():
    return hf.PixtralVisionConfig(image_size=32, patch_size=4, head_dim=16, **TOWER)


def mistral3(vocabulary=VOCABULARY, image=IMAGE):
    config = hf.Mistral3Config(
        text_config=text("MistralConfig", vocabulary, head_dim=12),
        vision_config=pixtral(),
        image_token_index=image,
        spatial_merge_size=2,
        tie_word_embeddings=False,
    )
    return hf.Mistral3ForConditionalGeneration(config)


def lighton_ocr(vocabulary=VOCABULARY, image=IMAGE):
    config = hf.LightOnOcrConfig(
        text_config=text("Qwen3Config", vocabulary), vision_config=pixtral(), image_token_id=image, spatial_merge_size=2
    )
    return hf.LightOnOcrForConditionalGeneration(config)


def pixtral_media(breaks):
    """Images of 6×3 or 2×4 tokens in a padded square, a break token after every row but the last."""

    def media(model, letter, generator):
        rows, columns = (3, 2) if letter == "i" else (2, 4)
        ids = [id for _ in range(rows) for id in (*[IMAGE] * columns, *[START] * breaks)]
        ids = [*ids[:-1], END] if breaks else ids
        pixels = torch.zeros(1, 3, 32, 32)
        pixels[:, :, : 8 * rows, : 8 * columns] = torch.randn(1, 3, 8 * rows, 8 * columns, generator=generator)
        return ids, {"pixel_values": pixels, "image_sizes": torch.tensor([[8 * rows, 8 * columns]])}

    return media


def ovis2(vocabulary=VOCABULARY, image=IMAGE, indicators=(90, 91, 92, 93, 94)):
    vision = hf.Ovis2VisionConfig(image_size=24, patch_size=4, vocab_size=40, hidden_stride=2, **TOWER)
    config = hf.Ovis2Config(
        text_config=text("Qwen2Config", vocabulary),
        vision_config=vision,
        image_token_id=image,
        visual_indicator_token_ids=indicators,
        vocab_size=vocabulary,
        hidden_size=48,
        tie_word_embeddings=False,
    )
    return hf.Ovis2ForConditionalGeneration(config)


def ovis2_media(model, letter, generator):
    """The whole image alone, or it and two tiles; an indicator before each and one at the end."""
    tiles = 1 if letter == "i" else 3
    ids = [id for tile in range(tiles) for id in ([90, 92, 93][tile], *[IMAGE] * 9)] + [94]
    return ids, {"pixel_values": torch.randn(tiles, 3, 24, 24, generator=generator)}


def got_ocr2(vocabulary=VOCABULARY, image=IMAGE):
    vision = {"image_size": 64, "patch_size": 4, "output_channels": 8, "window_size": 7, "global_attn_indexes": [1]}
    vision |= {"hidden_size": 32, "mlp_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = hf.GotOcr2Config(
        text_config=text("Qwen2Config", vocabulary),
        vision_config=hf.GotOcr2VisionConfig(**vision),
        image_token_index=image,
        image_seq_length=16,
        tie_word_embeddings=False,
    )
    return hf.GotOcr2ForConditionalGeneration(config)


def got_ocr2_media(model, letter, generator):
    tiles = 1 if letter == "i" else 2
    return 16 * tiles, {"pixel_values": torch.randn(tiles, 3, 64, 64, generator=generator)}


def qianfan_ocr(vocabulary=VOCABULARY, image=IMAGE):
    vision = hf.QianfanOCRVisionConfig(image_size=16, patch_size=2, **TOWER)
    config = hf.QianfanOCRConfig(
        text_config=text("Qwen3Config", vocabulary), vision_config=vision, image_token_id=image, image_seq_length=16
    )
    return hf.QianfanOCRForConditionalGeneration(config)


def square_media(tokens, side):
    """Images of `tokens` visual tokens, `side` pixels wide; a larger one is two of them."""

    def media(model, letter, generator):
        images = 1 if letter == "i" else 2
        return tokens * images, {"pixel_values": torch.randn(images, 3, side, side, generator=generator)}

    return media


CASES = {
    "idefics2": Case(idefics2, tiled(6)),
    "idefics3": Case(idefics3, tiled(9)),
    "smolvlm": Case(lambda: idefics3(kind="SmolVLM"), tiled(9)),
    "mistral3": Case(mistral3, pixtral_media(breaks=1)),
    "lighton_ocr": Case(lighton_ocr, pixtral_media(breaks=0), plain=False),
    "ovis2": Case(ovis2, ovis2_media),
    "got_ocr2": Case(got_ocr2, got_ocr2_media, frame=(START, END)),
    "qianfan_ocr": Case(qianfan_ocr, square_media(16, 16), plain=False, frame=(START, END)),
}
