"""Opens the data source that the settings name, with the splits that every stage relies on."""

from __future__ import annotations

from megu_dist.config.registry import lookup
from megu_dist.config.schema import SourceSettings
from megu_dist.data.base import Source
from megu_dist.data.carve import carve
from megu_dist.data.coarse import CoarseSource, group
from megu_dist.errors import UserError


def open_source(settings: SourceSettings) -> Source:
    """The source ``settings.name`` with at least a train and a test split. Raises :class:`UserError` without them."""
    source: Source = lookup("data", settings.name).target(settings)
    grouping = group(source, settings)
    source = carve(source, settings.test_fraction, settings.validation_fraction)
    if "test" not in source.splits:
        have = " and ".join(source.splits)
        raise UserError(
            f"data {settings.name!r} at {settings.path} has no test images (it has: {have}): set data.test_path to "
            "where they are, or data.test_fraction (e.g. 0.1) to hold out a share of the training images"
        )
    return source if grouping is None else CoarseSource(source, grouping)
