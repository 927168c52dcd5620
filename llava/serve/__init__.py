"""The command-line chat."""
