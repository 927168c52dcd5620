"""What the scorers share: reading answers files, normalising texts, finding option letters."""
