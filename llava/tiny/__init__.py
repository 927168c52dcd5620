"""The small model that ships: its scenes, questions, mini benchmarks, tokenizer and checkpoint writer."""
