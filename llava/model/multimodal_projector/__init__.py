"""Projectors from the vision tower to the decoder."""
