"""Training: the small model's recipe (`llava.train.tiny`)."""
