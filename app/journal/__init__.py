"""Runs, steps and values: what happened, recorded. Logic and Protocols only."""
