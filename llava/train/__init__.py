"""Training: LLaVA's interface on transformers' `Trainer` (`llava.train.train`); the small model's recipe (`tiny`)."""
