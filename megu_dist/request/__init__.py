"""Deletion requests: an append-only journal, one unlearning for the pending ones, and a hash-chained record of each."""
