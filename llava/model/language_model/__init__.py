"""The language models that LLaVA builds on."""
