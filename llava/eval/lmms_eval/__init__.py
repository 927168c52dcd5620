"""VisiPruner in lmms-eval: `lmms_eval --model visipruner --model_args pretrained=…,pruning={…}` (docs/lmms-eval.md)."""
