"""A thousand class names, and a small data set that has them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

KINDS = """
wolf fox owl duck goose parrot lizard turtle shark salmon spider beetle butterfly monkey bear cat terrier
hound cow sheep horse mushroom daisy orchid apple pear melon bread cake soup truck bus bicycle sailboat canoe
airplane helicopter train bridge castle church barn cottage lighthouse guitar violin drum trumpet piano clock
lamp chair table sofa bed cabinet bottle cup bowl spoon kettle knife hammer screwdriver saw shovel rake
umbrella hat shirt coat dress boot sandal glove sock ring necklace camera telephone television keyboard
printer radio book pencil envelope ball racket skateboard ski sled tent backpack mailbox fence fountain cactus
tractor wheelbarrow
""".split()  # noqa: SIM905
SORTS = ["red", "black", "white", "striped", "spotted", "giant", "dwarf", "wooden", "wild", "antique"]


def names(count: int = 1000) -> list[str]:
    """Distinct names such as "striped fox"."""
    found = [f"{sort} {kind}" for kind in KINDS for sort in SORTS]
    assert len(set(found[:count])) == count
    return found[:count]


def write(path: Path, class_names: list[str], per_class: int = 2) -> None:
    """Parquet in the Hugging Face layout with ``per_class`` images of 8×8 pixels per class."""
    rng = np.random.default_rng(0)
    image, labels = (
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        np.repeat(range(len(class_names)), per_class),
    )
    features = {"img": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": class_names}}
    schema = pa.schema(
        [("img", image), ("label", pa.int64())], {"huggingface": json.dumps({"info": {"features": features}})}
    )
    pictures = []
    for _ in labels:
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(buffer, format="PNG")
        pictures.append({"bytes": buffer.getvalue(), "path": None})
    pq.write_table(pa.table({"img": pictures, "label": labels}, schema=schema), path)
