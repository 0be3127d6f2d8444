"""Messages that a user can mend are found, however deep Ray wraps them."""

from __future__ import annotations

import pickle

import pytest

from megu_dist.errors import UserError, find_user_error, nearest


def test_the_nearest_choices() -> None:
    assert nearest("shrit", ["Shirt", "shirt", "boot"]).startswith("did you mean 'shirt'")
    assert nearest("zzz", ["a", "b"]) == "valid: a, b"
    assert nearest("x", []) == "there is nothing to choose from"
    assert nearest("q" * 9, range(100)).endswith("… (100 in all)")


def test_a_chain_is_followed() -> None:
    inner = UserError("cannot read image 'a'")
    outer = RuntimeError("task failed")
    outer.__cause__ = inner
    assert find_user_error(outer) is inner
    assert find_user_error(RuntimeError("other")) is None
    assert find_user_error(None) is None


def test_the_failures_of_train_workers() -> None:
    class Failed(Exception):
        worker_failures = {0: ValueError("rank 0"), 1: UserError("cannot read image 'b'")}  # noqa: RUF012

    found = find_user_error(Failed())
    assert found is not None
    assert str(found) == "cannot read image 'b'"


@pytest.mark.parametrize("wrapped", [True, False])
def test_errors_of_ray_tasks(wrapped: bool) -> None:
    """Ray Data puts an exception of its own around, and pickling loses a ``__cause__``: the text alone is left."""
    from ray.exceptions import RayTaskError, UserCodeException

    cause: Exception = UserError("cannot read image 'train/00000003': truncated")
    text = "Traceback (most recent call last):\n  …\nmegu_dist.errors.UserError: " + str(cause) + "\n"
    if wrapped:
        cause = pickle.loads(pickle.dumps(UserCodeException("UDF failed to process a data block.")))
        text += (
            "\nThe above exception was the direct cause of the following exception:\n\nUserCodeException: UDF failed"
        )
    found = find_user_error(RayTaskError("MapBatches(ImageReader)", text, cause).as_instanceof_cause())
    assert found is not None
    assert str(found) == "cannot read image 'train/00000003': truncated"
