"""Makes the CIFAR ResNet known to ``AutoConfig`` and ``AutoModelForImageClassification`` as soon as these are imported.

Importing transformers takes seconds, and ``import megu_dist`` (so ``megu --help``) should not: the registration
therefore runs right after the import of the module that holds each Auto class, whichever package is imported first.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MODEL_TYPE = "megu_cifar_resnet"


def _register_config() -> None:
    from transformers.models.auto.configuration_auto import AutoConfig

    from megu_dist.models.cifar_resnet_config import CifarResNetConfig

    AutoConfig.register(MODEL_TYPE, CifarResNetConfig, exist_ok=True)


def _register_model() -> None:
    from transformers.models.auto.modeling_auto import AutoModelForImageClassification

    from megu_dist.models.cifar_resnet import CifarResNetForImageClassification
    from megu_dist.models.cifar_resnet_config import CifarResNetConfig

    AutoModelForImageClassification.register(CifarResNetConfig, CifarResNetForImageClassification, exist_ok=True)


_AFTER_IMPORT: dict[str, Callable[[], None]] = {
    "transformers.models.auto.configuration_auto": _register_config,
    "transformers.models.auto.modeling_auto": _register_model,
}


class _ThenRun(Loader):
    """Loads a module as its own loader would, then calls ``action``."""

    def __init__(self, inner: Loader, action: Callable[[], None]) -> None:
        self.inner, self.action = inner, action

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.inner.exec_module(module)
        self.action()


class _Finder(MetaPathFinder):
    """Wraps the loader of the modules in ``_AFTER_IMPORT``, once each; leaves every other import alone."""

    def __init__(self) -> None:
        self.pending = dict(_AFTER_IMPORT)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        action = self.pending.pop(fullname, None)
        if action is None:
            return None
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return None
        spec.loader = _ThenRun(spec.loader, action)
        return spec


def register_when_imported() -> None:
    """Registers now what is already imported, and the rest when it is. Calling it twice is harmless."""
    finder = next((item for item in sys.meta_path if type(item).__name__ == _Finder.__name__), None)
    if finder is None:
        finder = _Finder()
        sys.meta_path.insert(0, finder)
    for name, action in _AFTER_IMPORT.items():
        if name in sys.modules and getattr(finder, "pending", {}).pop(name, None):
            action()
