"""Talking to a model: the chat of the command line."""
