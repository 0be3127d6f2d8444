"""Methods × forget requests × seeds, each tuned with the same budget, measured against retrained models."""
