"""Machine unlearning for image classifiers on Ray: MeGU (arXiv 2602.17088) and its baselines.

Importing the package makes the small CIFAR ResNet known to transformers' Auto classes; it imports no heavy library.
"""

from megu_dist.models.autoclass import register_when_imported

__version__ = "0.1.0"

register_when_imported()
