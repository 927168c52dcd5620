"""What compares runs and shows them: scores by question, intervals, tables, pictures."""
