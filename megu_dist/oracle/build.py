"""The oracle as Serve's config files name it: ``import_path: megu_dist.oracle.build:app``."""

from __future__ import annotations

from typing import Any

from megu_dist.config.compose import load
from megu_dist.config.schema import OracleSettings
from megu_dist.errors import UserError
from megu_dist.oracle.serve import app_name, application


def app(args: dict[str, Any]) -> Any:
    """The application of ``args["words"]``, a list as on the command line, as in ``oracle=mllm``, ``oracle.num_gpus=1``.

    ``args["name"]`` is the application's name in the config file, by which fills find it: it must follow from the words.
    """
    found = settings(args)
    if args.get("name") != app_name(found):
        raise UserError(f"the application must have the name {app_name(found)}, by which jobs look for these settings")
    return application(found)


def settings(args: dict[str, Any]) -> OracleSettings:
    """The oracle's settings out of the words."""
    return load([str(word) for word in args["words"]]).settings.oracle
