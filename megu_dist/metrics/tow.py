"""Tug-of-war scores (Zhao et al. 2024) and the average gap; both against the retrained model θ_r.

``tow`` = (1 − |Δacc_f|)(1 − |Δacc_r|)(1 − |Δacc_test|) on forgotten training, retained training and retained test
images; ``tow_mia`` has MIA in place of acc_f; 1 is the retrained model, higher is better. ``avg_gap`` is the mean
|metric − θ_r's| over forget, retain, test accuracy and MIA; lower is better.
"""

from __future__ import annotations

from megu_dist.config.registry import register
from megu_dist.metrics.base import Numbers, Parts, scope


@register("metric", "tow")
@scope("versus")
def tow(_: Parts, __: Parts, ours: Numbers, reference: Numbers) -> Numbers:
    """Tug-of-war, tug-of-war with MIA, average gap."""

    def gap(name: str) -> float:
        return abs(ours[name] - reference[name])

    retained = (1 - gap("acc_retain_train")) * (1 - gap("acc_retain_test"))
    out = {"tow": (1 - gap("acc_forget_train")) * retained}
    if "mia" in ours and "mia" in reference:
        out["tow_mia"] = (1 - gap("mia")) * retained
        names = ("acc_forget_train", "acc_retain_train", "acc_retain_test", "mia")
        out["avg_gap"] = sum(gap(name) for name in names) / len(names)
    return out
