"""Evaluation plan, scores, sanity checks, and the gate."""
