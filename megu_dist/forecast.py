"""What a request would take, before anything starts: rows, oracle calls, memory, steps, operations (``megu plan``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from megu_dist.data.split import read_ids

if TYPE_CHECKING:
    from megu_dist.pipeline import Pipeline


def plan(pipeline: Pipeline) -> list[tuple[str, str]]:
    """Names and values of what an unlearning takes; reads counts and names, starts nothing."""
    s = pipeline.settings
    classes = len(pipeline.names)
    named = len(pipeline.forgotten_names)
    rows = named or classes
    lines = [
        ("training images", f"{pipeline.source.num_rows('train'):,}"),
        ("test images", f"{pipeline.source.num_rows('test'):,}"),
        ("classes", f"{classes:,}"),
        ("forget concepts", f"{rows:,}" if named else f"at most {rows:,}"),
        ("oracle", s.oracle.name),
    ]
    if pipeline.measures_confusion():
        told = ("oracle calls", "none beyond the classifier's own predictions on validation images")
        return [*lines, told, *_compute(pipeline)]
    found = pipeline.oracle_estimate(s.oracle, rows)
    basis = "from stored ratings" if found.measured else "estimated from the text's length"
    lines += [
        ("pairs rated", f"{found.pairs:,} (all pairs of classes: {found.full_matrix:,})"),
        ("oracle calls", f"at most {found.calls:,} ({found.stored:,} ratings of this oracle are stored already)"),
        ("prompt tokens", f"{found.prompt_tokens:,} ({basis})"),
        ("answer tokens", f"{found.answer_tokens:,}"),
        ("oracle seconds", "unknown before the first ratings" if found.seconds is None else f"{found.seconds:,.0f}"),
        ("price", "no price given (oracle.price_prompt, oracle.price_answer)" if found.price is None
         else f"{found.price:,.4f}"),
    ]  # fmt: skip
    return lines + _compute(pipeline)


def _compute(pipeline: Pipeline) -> list[tuple[str, str]]:
    """What the model itself takes; needs no weights, only its configuration."""
    from megu_dist.engine.memory import forecast

    s, forget = pipeline.settings, _count_forget(pipeline)
    retain = pipeline.source.num_rows("train") - forget
    build, shape = pipeline.architecture()
    return forecast(s, build, shape, forget, retain, pipeline.noise if pipeline.needs_perturbed else None)


def _count_forget(pipeline: Pipeline) -> int:
    """Training images of the request, from labels alone."""
    forget, total = pipeline.settings.forget, pipeline.source.num_rows("train")
    if forget.scenario == "random":
        return forget.count or round(total * (forget.fraction or 0.0))
    if forget.scenario == "ids":
        return len(read_ids(str(forget.ids_file)))
    source = pipeline.source.fine if pipeline.fine and pipeline.source.fine is not None else pipeline.source
    wanted = pipeline.subclasses if pipeline.fine else pipeline.classes
    labels = (source.index(piece)["label"].to_numpy() for piece in source.pieces("train"))
    return sum(int(np.isin(part, wanted).sum()) for part in labels)
