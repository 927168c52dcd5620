"""`llava.train.train` with FlashAttention-2, as LLaVA's scripts call it; needs a CUDA device and flash-attn."""

import sys

from llava.train.train import main

if __name__ == "__main__":
    sys.exit(main(attention="flash_attention_2"))
