"""Sensitivity analyses: many settings of one unlearning, tried with Ray Tune on validation images."""
