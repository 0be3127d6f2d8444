"""The words of a request's page: what its numbers say, and what they do not prove."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megu_dist.report.wording import number
from megu_dist.request.chain import Entry

MODELS = {"before": "before", "after": "after", "retrained": "retrained", "second_retrained": "second retrained"}
NEAR = 0.05  # difference to the retrained model that its own chance (the floor) may well make
BOTH = ("after", "retrained")


@dataclass(frozen=True)
class Row:
    """A line of the table of measurements, with a cell for each of :data:`MODELS`."""

    title: str
    meaning: str
    cells: tuple[str, ...]


# key of a model's metrics, title, meaning
MEASURED = (
    ("acc_retain_test", "Accuracy, retained, test", "what the deletion must not cost"),
    ("acc_retain_test_masked", "Accuracy, retained, test, classes left", "the same where only classes that are left count"),
    ("acc_retain_train", "Accuracy, retained, training", "the same on images that the model may still know"),
    ("acc_already_test", "Accuracy, forgotten earlier, test", "test images of classes that earlier requests deleted"),
    ("mia", "Membership inference (MIA)",
     "share of the batch's images that an attack on prediction entropy takes for training images; compare with the "
     "retrained model, not with 0"),
    ("mia_loss_auc", "Attack on the loss, AUC", "telling deleted images from unseen ones of their kind; 0.5: impossible"),
    ("mia_loss_tpr", "Attack on the loss, TPR at 1 % FPR", "share of deleted images found when 1 % are mistaken; 0.01: none"),
    ("probe_forget_acc", "Linear probe", "accuracy of a linear classifier on frozen features, on deleted classes"),
    ("relearn_epochs", "Relearn epochs", "epochs of training on the deleted images until they are known again"),
)  # fmt: skip
DISTANCES = (
    ("kl_forget", "KL to the retrained model", "on deleted images; 0: the same predictions"),
    ("tow", "Tug of war (ToW)", "1: as the retrained model on deleted, retained and test images"),
    ("u_lira_auc", "U-LiRA, AUC", "attack per image with shadow models; 0.5: unlearned cannot be told from retrained"),
    ("u_lira_tpr", "U-LiRA, TPR at 1 % FPR", "share of images found when 1 % are mistaken; 0.01: none"),
)


def asked(entry: Entry) -> str:
    """What a request names, in words; no id of an image."""
    parts = [f"class {name!r}" for name in entry["classes"]]
    if images := entry["images"]:
        parts.append(f"{images:,} training image" + ("s" if images > 1 else ""))
    return ", ".join(parts)


def rows(record: Entry) -> list[Row]:
    """Everything that was measured; models without a value have a dash."""
    metrics, own = record["metrics"], record["measured"]
    found = [
        _row(own, f"acc_{split}", f"Accuracy, this request's {words}", f"of {_count(own, split):,} images")
        for split, words in (("train", "training images"), ("test", "classes, test"))
        if _count(own, split)
    ]
    if record["batch_requests"] > 1:
        title = "Accuracy, all requests of the batch, training"
        found.append(_row(metrics, "acc_forget_train", title, f"{record['batch_requests']} requests, one unlearning"))
    found += [_row(metrics, *told) for told in MEASURED if any(told[0] in metrics.get(m, {}) for m in MODELS)]
    for key, title, meaning in DISTANCES:
        values = {"after": metrics.get("versus_retrained", {}), "second_retrained": metrics.get("versus_floor", {})}
        if key in values["after"]:
            found.append(_row(values, key, title, meaning))
    return found


def _count(own: dict[str, Any], split: str) -> int:
    return int(own.get("after", {}).get(f"{split}_images", 0))


def _row(values: dict[str, Any], key: str, title: str, meaning: str) -> Row:
    return Row(title, meaning, tuple(_cell(values.get(model, {}), key) for model in MODELS))


def _cell(values: dict[str, Any], key: str) -> str:
    if key == "relearn_epochs" and values.get("relearn_reached") == 0:
        return f"> {values[key]:g}"
    return number(values.get(key), 2 if key == "relearn_epochs" else 3)


def verdict(record: Entry) -> str:
    """One sentence from this request's own numbers."""
    own, metrics = record["measured"], record["metrics"]
    split = "test" if _count(own, "test") else "train"
    key = f"acc_{split}"
    images = "test images of it" if split == "test" else "these training images"
    told = f"accuracy on {images} {_change(own, key)}; on retained test images {_change(metrics, 'acc_retain_test')}"
    return f"Deleted {asked(record)}: {told}."


def _change(values: dict[str, Any], key: str) -> str:
    text = f"{number(values['before'].get(key))} → {number(values['after'].get(key))}"
    retrained = values.get("retrained", {}).get(key)
    return text if retrained is None else f"{text} (retrained {number(retrained)})"


def readings(record: Entry) -> list[str]:
    """What the measurements say in plain words, good or bad."""
    metrics, own = record["metrics"], record["measured"]
    told = []
    if record["classes"] and _count(own, "test"):
        left = own["after"]["acc_test"]
        told.append(
            "The model hardly ever names the deleted class any more."
            if left <= NEAR
            else f"The model still names {left:.1%} of the class's test images right: it was NOT wholly forgotten."
        )
    if not record["classes"]:
        told.append(
            "The images belong to classes that are still known, so many of them are still named rightly, as images that "
            "were never trained on are. What should be gone is that the model knows these images better than unseen ones."
        )
        left, unseen = own["after"]["acc_train"], metrics["after"].get("acc_retain_test", 0.0)
        if unseen - left > 2 * NEAR:
            told.append(
                f"They are named right less often ({left:.1%}) than images never trained on ({unseen:.1%}): the model was "
                "pushed further than forgetting needs, which by itself can give them away."
            )
    for key, sense, hidden in (
        ("probe_forget_acc", 1, "its features still separate what was deleted, more than retraining leaves"),
        (
            "relearn_epochs",
            -1,
            "it learns the deleted images again faster than the retrained model: some of it is hidden",
        ),
    ):
        after, retrained = (metrics.get(model, {}).get(key) for model in BOTH)
        if after is not None and retrained is not None:
            worse = sense * (after - retrained) > NEAR
            name = {"probe_forget_acc": "Linear probe", "relearn_epochs": "Relearning"}[key]
            fine = "no sign that more of it is left than in the retrained model"
            told.append(f"{name}: {hidden if worse else fine} ({after:.2f} against {retrained:.2f}).")
    already = metrics["after"].get("acc_already_test")
    if already is not None:
        stay = "stay forgotten" if already <= NEAR else f"are named right again in {already:.1%} of the cases"
        told.append(f"Classes that earlier requests deleted {stay}.")
    return told


def limits(record: Entry) -> list[str]:
    """What the record does not prove."""
    told = [
        "That the images themselves are gone. Nothing was removed from the training data, from backups or from other "
        "copies; that is for whoever keeps them.",
        "That other models are free of them. The model before this deletion still knows them, and so does everything that "
        "was made from it.",
        "That the model which is in use is the one measured here. Compare the SHA-256 of its files with those below.",
        "That nothing of the images is left in the weights. Unlearning is approximate: it moves a trained model towards one "
        "that never saw them, and gives no mathematical guarantee. The attacks above are some of those known today; a "
        "stronger one may still find traces.",
        "That the person or thing shown is forgotten. Only the images named were treated; near copies under other ids are not.",
        "That the numbers were written down truthfully. The chain of hashes shows changes made later, and only to somebody who "
        "noted down a hash before: whoever keeps the ledger can write all of it anew.",
    ]
    metrics = record["metrics"]
    if "retrained" not in metrics:
        told.insert(4, "How near this is to retraining: no retrained model was given (evaluate.retrained), so the values of "
                       "MIA, probe and relearning have nothing to be compared with.")  # fmt: skip
    elif "second_retrained" not in metrics:
        told.insert(4, "How much of the distance to the retrained model is chance: no second one was given "
                       "(evaluate.retrained_second).")  # fmt: skip
    if "u_lira_auc" not in metrics.get("versus_retrained", {}):
        told.insert(4, "That single images cannot be told by the strongest attack known, U-LiRA: it was not run. It judges a "
                       "method by many models, so it is part of `megu benchmark`.")  # fmt: skip
    if not all(key in metrics["after"] for key in ("probe_forget_acc", "relearn_epochs")) and record["classes"]:
        told.insert(4, "That more than the last layer has forgotten: linear probe and relearning were not both measured "
                       "(evaluate.deep=[linear_probe,relearn]).")  # fmt: skip
    return told
