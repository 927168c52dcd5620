"""Comparison and display of runs: scores per question, intervals, tables, plots."""
