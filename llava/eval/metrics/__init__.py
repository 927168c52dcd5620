"""Shared code of the scorers: answers files, text normalisation, option letters, intervals."""
