"""The stages in order: what each reads, what its content key is, where its artefacts go."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from megu_dist.config.registry import lookup
from megu_dist.config.schema import SINGLE, MeguSettings, OracleSettings, keyed
from megu_dist.config.validate import check, check_forget, check_method, resolve_classes
from megu_dist.data import stream
from megu_dist.data.bad_rows import BadRows
from megu_dist.data.base import Source
from megu_dist.data.coarse import refuse_fine_names, resolve_subclasses
from megu_dist.data.open import open_source
from megu_dist.data.plan import complement, sample
from megu_dist.data.split import ALREADY_SCHEMA, Gone, Split, ids_hash, make_split, read_ids
from megu_dist.errors import UserError
from megu_dist.models.checkpoint import Checkpoint, check_labels, open_checkpoint
from megu_dist.placement import elastic_least, watched
from megu_dist.progress import Reporter
from megu_dist.raysession import auto_actors
from megu_dist.store import ArtefactStore, Record, content_key, write_json

if TYPE_CHECKING:
    from torch import nn

    from megu_dist.oracle.cost import Estimate

TRAINED = ("train", "finetune")  # stages whose work a group of training workers does
PROBE = 1 << 20  # stands where an epoch does in the choice of images that a probe learns from
SHORTLIST_IMAGES = 256  # forget images per class that tell where the classifier sends them


class Pipeline:
    """One command on one run folder. Construction checks all input that can be checked without Ray."""

    def __init__(self, settings: MeguSettings, folder: Path, reporter: Reporter, source: Source | None = None) -> None:
        self.settings, self.folder, self.reporter = settings, folder.resolve(), reporter
        check(settings)
        self.source: Source = source or open_source(settings.data)
        self.names = self.source.class_names
        self.classes: list[int] = []  # labels of the model's label space that are forgotten as a whole
        self.subclasses: list[int] = []  # fine labels that are forgotten
        self.already: list[int] = []  # labels that were forgotten as a whole before
        self.store = ArtefactStore(self.folder, settings.run.resume)
        self.references: Path | None = None  # where predictions of models that many runs compare with are kept

    # --- checks -----------------------------------------------------------------------------------------------------

    def check_request(self) -> None:
        """The forget request against the data's classes."""
        check_forget(self.settings)
        forget = self.settings.forget
        if forget.scenario == "class":
            refuse_fine_names(forget.classes, self.source)
            self.classes = resolve_classes(forget.classes, self.names)
        if forget.scenario == "subclass":
            self.subclasses = resolve_subclasses(forget.classes, self.source)
        if forget.scenario == "ids":
            read_ids(str(forget.ids_file))
        self._check_already()
        count, total = self.settings.forget.count, self.source.num_rows("train")
        if self.settings.forget.scenario == "random" and count is not None and count >= total:
            raise UserError(
                f"forget.count={count} takes every one of {total} training images: nothing would be retained; "
                "ask for fewer"
            )
        self._compared()

    def _check_already(self) -> None:
        """What was forgotten before, against the data's classes and the request."""
        forget = self.settings.forget
        if forget.already_classes:
            self.already = resolve_classes(forget.already_classes, self.names, "forget.already_classes")
        if both := sorted({*self.classes} & {*self.already}):
            raise UserError(
                f"forget.classes: {self.names[both[0]]!r} was forgotten before; leave it out of forget.classes"
            )
        left = len(self.names) - len({*self.classes} | {*self.already})
        if self.already and left < 1 + (forget.scenario != "class"):  # an image needs another class to go to
            raise UserError(
                f"forget.already_classes and the request together leave {left} of {len(self.names)} classes"
            )

    @property
    def gone(self) -> Gone:
        """What was forgotten before."""
        file = self.settings.forget.already_file
        return Gone(tuple(self.already), frozenset(read_ids(file, "forget.already_file")) if file else frozenset())

    @property
    def fine(self) -> bool:
        """Whether fine classes inside coarse labels are forgotten."""
        return self.settings.forget.scenario == "subclass"

    @property
    def forgotten_names(self) -> list[str]:
        """Names of the classes, or fine classes, that are forgotten; none for single images."""
        if self.fine and self.source.fine is not None:
            return [self.source.fine.class_names[label] for label in self.subclasses]
        return [self.names[label] for label in self.classes]

    @property
    def needs_perturbed(self) -> bool:
        """Whether the method learns from the perturb stage's images."""
        return bool(lookup("method", self.settings.method.name).target.needs_perturbed)

    @property
    def noise(self) -> str:
        """Which noise the perturb stage makes."""
        if self.settings.perturb.noise != "auto":
            return self.settings.perturb.noise
        return str(lookup("method", self.settings.method.name).target(self.settings.method).noise())

    def check_method(self) -> None:
        """Whether the method can do what is asked of it."""
        check_method(self.settings)
        self.check_trainable()

    def check_trainable(self) -> None:
        """Whether the model has the parts that are to be trained; only where parts are named is it looked at."""
        s = self.settings
        if s.train.trainable == "all" and s.train.layer_decay == 1:
            return
        import torch

        from megu_dist.engine import trainable

        if s.train.trainable != "all" and s.model.path is None:
            raise UserError(f"train.trainable={s.train.trainable} needs a trained model: set model.path")
        build, _ = self.architecture()
        with torch.device("meta"):
            trainable.check(build(), s.train)

    def architecture(self) -> tuple[Callable[[], nn.Module], tuple[int, int, int]]:
        """What makes the model without its weights, and the images' shape."""
        from megu_dist.models.checkpoint import untrained

        if self.settings.model.path is None:
            model = lookup("model", self.settings.model.name).target(self.settings.model)
            return partial(model.build, self.names), model.preprocess().shape
        found = self.open_model(self.settings.model.path, "model.path")
        return partial(untrained, found.folder), found.preprocess.shape

    def check_oracle(self) -> None:
        """The oracle's settings, its packages and files, before any worker starts."""
        from megu_dist.oracle.fill import about
        from megu_dist.oracle.stage import known_names, read_descriptions

        settings = self.settings.oracle
        read_descriptions(settings.descriptions, known_names(self.source))
        if settings.on_degenerate == "fallback":
            about(lookup("oracle", settings.fallback).settings(name=settings.fallback))  # type: ignore[misc]
        if self.measures_confusion() and self.settings.model.path:
            if "validation" not in self.source.splits:
                raise UserError(
                    f"oracle={settings.name} looks at validation images, and there are none: set "
                    "data.validation_fraction=0.1, say"
                )
            return
        about(settings)

    def measures_confusion(self) -> bool:
        """Whether the oracle is the classifier itself, whose table this run measures."""
        settings = self.settings.oracle
        measured = getattr(lookup("oracle", settings.name).target, "measured", False)
        return bool(measured) and getattr(settings, "path", None) is None

    @property
    def ratings_folder(self) -> Path:
        """Where ratings are stored: beside the runs, so that they share them."""
        return Path(self.settings.oracle.store or Path(self.settings.run.dir) / "ratings").expanduser().resolve()

    def _compared(self) -> list[Path]:
        """The runs of ``report.compare``."""
        folders = [Path(path).expanduser().resolve() for path in self.settings.report.compare]
        for folder in folders:
            if not (folder / "metrics.json").is_file():
                raise UserError(f"report.compare: {folder} has no metrics.json; run `megu unlearn` there first")
        return folders

    def open_model(self, path: str | None, key: str) -> Checkpoint:
        """A checkpoint whose label space is the data's."""
        if not path:
            raise UserError(f"{key} is not set: give the folder or hub id of a trained image classifier")
        checkpoint = open_checkpoint(path, key)
        check_labels(checkpoint, self.names, key)
        return checkpoint

    # --- stages -----------------------------------------------------------------------------------------------------

    def _stage(self, name: str, inputs: dict[str, Any], outputs: list[str], total: int, unit: str, work: Any) -> Record:
        found = self.store.find(name, content_key(inputs))
        if found is not None:
            self.reporter.skipped(name)
            return found
        try:
            with self.reporter.stage(name, total, unit), self._watched(name):
                return self.store.stage(name, inputs, outputs, work)
        finally:
            self._name_bad_rows()

    def _watched(self, stage: str) -> AbstractContextManager[None]:
        """Has the user told what the stage waits for when the cluster is full."""
        if stream.here():
            return nullcontext()
        least = elastic_least(self.settings.train) if stage in TRAINED else ()
        timeout = self.settings.run.placement_timeout_s
        return watched(stage, lambda: self.reporter.done, self.reporter.say, timeout, least)

    def check_cluster(self) -> None:
        """Whether the cluster holds the training workers: refused before the stages that come before them."""
        from megu_dist.engine.launch import check_workers

        if not stream.here() and not any(self.store.read(stage) for stage in TRAINED):
            check_workers(self.settings.train)

    def tolerate(self, forget_rows: np.ndarray) -> None:
        """Has images that cannot be read named in the run folder and, but for those to be forgotten, left out "
        "if few."""
        # Not part of any stage's key: a run that stopped goes on from where it was once more images may be bad.
        folder = self.folder / ".bad_rows" / self.source.fingerprint()[:16]
        self.source.bad_rows = BadRows(folder, self.settings.data.max_bad_fraction, forget_rows)
        self._name_bad_rows()

    def _name_bad_rows(self) -> None:
        """``split/bad_rows.parquet``, where any image could not be read."""
        bad, file = self.source.bad_rows, self.folder / "split" / "bad_rows.parquet"
        if bad is not None and (count := bad.write(file)):
            self.reporter.say(f"{count} images cannot be read and are left out; {file} names them")

    def split(self) -> tuple[Split, Record]:
        """``split/forget.parquet`` and ``split/manifest.json``."""
        forget = self.settings.forget
        inputs: dict[str, Any] = {"data": self.source.fingerprint(), "forget": _keyed(forget), "classes": self.classes}
        inputs["seed"] = self.settings.seed.unlearn if forget.scenario == "random" else None
        if forget.scenario == "ids":
            inputs["ids"] = ids_hash(read_ids(str(forget.ids_file)))
        if gone := self.gone:
            inputs["already"] = [self.already, ids_hash(list(gone.ids))]

        def work(out: Path) -> dict[str, Any]:
            wanted = self.subclasses if self.fine else self.classes
            split = make_split(self.source, forget, wanted, self.settings.seed.unlearn, self.reporter.update, gone)
            (out / "split").mkdir()
            pq.write_table(split.forget, out / "split" / "forget.parquet")
            pq.write_table(split.already, out / "split" / "already.parquet")
            ids = split.forget["id"].to_pylist()
            manifest = {
                "scenario": forget.scenario,
                "class_names": self.names,
                "classes": self.forgotten_names,
                "train": int(split.class_counts.sum()),
                "test": self.source.num_rows("test"),
                "forget": len(ids),
                "already": len(split.already),
                "already_classes": [self.names[label] for label in self.already],
                "retain": int(split.class_counts.sum()) - len(ids) - len(split.already),
                "class_counts": split.class_counts.tolist(),
                "forget_hash": ids_hash(ids),
                "data_fingerprint": self.source.fingerprint(),
            }
            write_json(out / "split" / "manifest.json", manifest)
            return {"forget": len(ids), "forget_hash": manifest["forget_hash"]}

        total = self.source.num_rows("train")
        record = self._stage("split", inputs, ["split"], total, "rows", work)
        manifest = json.loads((self.folder / "split" / "manifest.json").read_text())
        table = pq.read_table(self.folder / "split" / "forget.parquet")
        self.tolerate(table["row"].to_numpy())
        file = self.folder / "split" / "already.parquet"
        already = pq.read_table(file) if file.is_file() else ALREADY_SCHEMA.empty_table()  # an older run has none
        return Split(table, np.array(manifest["class_counts"]), already), record

    def oracle(self, split: Split, split_key: str, model: Checkpoint | None) -> Record:
        """``transition.json``; before it, where the classifier's confusions are asked for, their table."""
        from megu_dist.oracle import fill, stage

        s = self.settings
        settings, labels, per_class = s.oracle, split.labels, s.forget.scenario == "class"
        fine = self.fine
        confusions = None
        if self.measures_confusion() and model is not None:
            record = self._confusion("confusion", "validation", split, split_key, model)
            settings = replace(settings, path=str(self.folder / "confusion.parquet"))  # type: ignore[call-arg]
        if stage.shortlisted(settings, len(self.names)) and model is not None:
            record = self._confusion("shortlist", "train", split, split_key, model)
            confusions = self.folder / "shortlist.parquet"
        known = fill.about(settings)
        # What is shown of a class must not be what a request by ids asks, or asked, to delete.
        without = split.already["row"].to_numpy() if per_class else split.left_out
        inputs: dict[str, Any] = {"oracle": _keyed(settings), "id": known.id, "prompts": known.prompts}
        inputs["oracle"].pop("path", None)  # the id stands for its content
        inputs |= {"names": self.names, "labels": labels, "tau": s.perturb.tau, "exclude_self": per_class}
        inputs["descriptions"] = stage.read_descriptions(settings.descriptions, stage.known_names(self.source))
        if fine:
            inputs |= {"rows": self.forgotten_names, "left": stage.remaining(self.source, labels)}
        inputs["shortlist"] = None if confusions is None else record.key
        if self.already:
            inputs["already"] = self.already
        if settings.images:
            inputs |= {
                "data": self.source.fingerprint(),
                "seed": s.seed.unlearn,
                "without": None if per_class and not len(without) else split_key,
            }

        def work(out: Path) -> dict[str, Any]:
            job = stage.prepare(
                self.source, settings, labels, s.perturb.tau, per_class, s.seed.unlearn, without, confusions, fine,
                tuple(self.already),
            )  # fmt: skip
            return fill.fill(settings, job, self.ratings_folder, out, self.reporter.update)

        total = self.oracle_estimate(settings, len(labels)).calls
        return self._stage("oracle", inputs, ["transition.json"], total, "ratings", work)

    def oracle_estimate(self, settings: OracleSettings, rows: int) -> Estimate:
        """What filling ``rows`` rows will take."""
        from megu_dist.oracle import cost, fill
        from megu_dist.oracle.ratings import RatingStore

        known = fill.about(settings)
        return cost.estimate(settings, known, rows, self.names, RatingStore(self.ratings_folder, known), self.fine)

    def _confusion(self, stage: str, part: str, split: Split, split_key: str, model: Checkpoint) -> Record:
        """``<stage>.parquet``: where the classifier sends validation images, or the forget images of each class."""
        from megu_dist.data.split import scan
        from megu_dist.oracle.confusion import per_class, write_confusion

        s = self.settings
        limit = int(getattr(s.oracle, "images_per_class", SHORTLIST_IMAGES))
        inputs = {"split": split_key, "model": model.fingerprint(), "part": part, "limit": limit}
        outputs = [f"{stage}.parquet"]

        def work(out: Path) -> None:
            source = self.source.fine if self.fine and self.source.fine is not None else self.source
            table = split.forget
            if part != "train":
                table, _ = scan(source, part, None, columns=("row", "label"))
            of = "fine" if "fine" in table.column_names else "label"
            rows = per_class(table["row"].to_numpy(), table[of].to_numpy(), limit)
            few = stream.few(len(rows), model.preprocess.image_bytes, source.encoded_bytes(part))
            actors = auto_actors(s.evaluate.num_actors, s.evaluate.num_gpus, few)
            target = out / outputs[0]
            write_confusion(source, part, rows, model, s.evaluate, actors, target, self.reporter.update, self.names)

        return self._stage(stage, inputs, outputs, 0, "images", work)

    def perturb(self, split: Split, split_key: str, model: Checkpoint, oracle: Record) -> Record:
        """``perturbed/*.parquet``."""
        from megu_dist.oracle.transition import Transition
        from megu_dist.perturb.stage import perturb

        s = self.settings
        inputs = {"split": split_key, "model": model.fingerprint(), "oracle": oracle.key, "seed": s.seed.unlearn}
        settings = replace(s.perturb, noise=self.noise)
        inputs["perturb"] = _keyed(settings)
        transition = Transition.from_json(json.loads((self.folder / "transition.json").read_text()))
        retained = None
        if s.perturb.probe_images:
            kept = complement(self.source.num_rows("train"), split.left_out)
            retained = sample(kept, s.perturb.probe_images, s.seed.unlearn, PROBE)
        # Not without a probe: a model alone is too sure of what it was trained on.
        keep = retained is not None and s.forget.scenario in (*SINGLE, "subclass")
        if keep:
            inputs["keep"] = True

        def work(out: Path) -> dict[str, Any]:
            bytes_each = model.preprocess.image_bytes * (2 + s.perturb.draws)
            few = stream.few(total, bytes_each, self.source.encoded_bytes("train"))
            actors = auto_actors(s.perturb.num_actors, s.perturb.num_gpus, few)
            return perturb(
                self.source,
                split.rows,
                model,
                transition,
                [*self.classes, *self.already],
                settings,
                s.seed.unlearn,
                actors,
                out / "perturbed",
                self.reporter.update,
                self.fine,
                retained,
                keep,
            )

        total = len(split.rows) + (0 if retained is None else len(retained))
        return self._stage("perturb", inputs, ["perturbed"], total, "images", work)

    def finetune(
        self,
        split: Split,
        split_key: str,
        model: Checkpoint | None,
        perturbed: Record | None,
        until: int | None = None,
        start: Path | None = None,
    ) -> Record:
        """``model/`` and ``history.jsonl``; with ``model`` None, training from random weights on the retain rows.

        ``until``: stop after so many epochs of the schedule; a later call goes on from there. ``start``: a checkpoint to go
        on from where this fit has none of its own.
        """
        from megu_dist.engine.launch import fit
        from megu_dist.engine.worker import TrainJob

        s = self.settings
        train = _keyed(s.train)
        for name in ("threads", "max_failures", "checkpoint_every"):
            del train[name]
        if s.train.batch_norm != "local":
            train["num_workers"] = 1  # any number gives the same numbers, and goes on from another's checkpoints
        inputs: dict[str, Any] = {"split": split_key, "train": train, "engine": asdict(s.engine)}
        inputs |= {"method": asdict(s.method), "perturb": None if perturbed is None else perturbed.key}
        inputs["model"] = _keyed(s.model) if model is None else model.fingerprint()
        inputs["seed"] = s.seed.train if model is None else s.seed.unlearn
        preprocess = lookup("model", s.model.name).target(s.model).preprocess() if model is None else model.preprocess
        kept = self.source.num_rows("train") - len(split.left_out)
        per_epoch = min(kept, s.train.retain_per_epoch or kept) + (len(split.rows) if perturbed else 0)
        key = content_key(inputs)
        if until is not None:
            inputs["until"] = until  # of the stage, and not of its checkpoints
        if start is not None:
            inputs["start"] = str(start)

        def progress(line: dict[str, Any]) -> None:
            self.reporter.update(round((line["epoch"] + line["step"] / line["steps"]) * per_epoch))

        def work(out: Path) -> dict[str, Any]:
            job = TrainJob(
                settings=s,
                source=self.source,
                class_names=self.names,
                preprocess=preprocess,
                forget_rows=split.rows,
                seed=inputs["seed"],
                out=str(out),
                history=str(self.folder / "checkpoints" / key[:12] / "history.jsonl"),
                model_folder=None if model is None else str(model.folder),
                perturbed=None if perturbed is None else str(self.folder / "perturbed"),
                until=until,
                resume=None if start is None else str(start),
                forget_classes=tuple(self.classes),
                already_rows=split.already["row"].to_numpy(),
                already_classes=tuple(self.already),
            )
            result = fit(job, self.folder / "checkpoints" / key[:12], progress)
            if (lost := result.get("resumed", {}).get("fresh_optimizer")) is not None:
                workers = f"{result['resumed']['workers']} workers' checkpoint by {result['world_size']}"
                self.reporter.say(f"{name}: resumed from {workers}, weights with a fresh optimiser state ({lost})")
            return result

        name = "train" if model is None else "finetune"
        outputs = ["model", "history.jsonl"]
        return self._stage(name, inputs, outputs, per_epoch * s.train.epochs, "images", work)

    def evaluate(
        self, split: Split, split_key: str, models: dict[str, Checkpoint], records: list[Record], method: str
    ) -> Record:
        """``metrics.json`` and ``predictions/*.parquet``."""
        from megu_dist.metrics import base, predict
        from megu_dist.metrics.deep import run_deep

        s = self.settings
        inputs: dict[str, Any] = {"split": split_key, "seed": s.seed.evaluate, "limit": s.evaluate.retain_train_limit}
        inputs["models"] = {name: model.fingerprint() for name, model in models.items()}
        inputs["split_scored"] = s.evaluate.split
        inputs["deep"] = (
            [s.evaluate.deep, s.evaluate.relearn_lr, s.evaluate.relearn_epochs] if s.evaluate.deep else None
        )
        inputs["stages"] = {record.stage: record.seconds for record in records}
        reader = self._parts(split, next(iter(models.values())))

        def work(out: Path) -> dict[str, Any]:
            import time

            start = time.monotonic()
            few = stream.few(reader.count, reader.preprocess.image_bytes, self.source.encoded_bytes("train"))
            actors = auto_actors(s.evaluate.num_actors, s.evaluate.num_gpus, few)
            folders = {name: str(model.folder) for name, model in models.items()}
            kept = predict.Kept(self.references, inputs["models"], content_key({k: inputs[k] for k in (
                "split", "seed", "limit", "split_scored")} | {"data": self.source.fingerprint()}))  # fmt: skip
            found = predict.predict(
                reader, folders, s.evaluate, actors, out / "predictions", self.reporter.update, kept
            )
            per_model, versus = base.compute(found, s.seed.evaluate)
            if s.evaluate.deep:
                deep = run_deep(s.evaluate.deep, self._deep_job(split, models["original"]), folders)
                per_model = {name: numbers | deep.get(name, {}) for name, numbers in per_model.items()}
            floor = None
            if "retrained_second" in found:  # a measure of chance, and not a model of the run
                floor = base.against_retrained("retrained_second", found, per_model), per_model.pop("retrained_second")
            seconds = {r.stage: r.seconds for r in records} | {"evaluate": round(time.monotonic() - start, 3)}
            seconds["total"] = round(sum(seconds.values()), 3)
            self._write_metrics(out, split, method, per_model, versus, floor, seconds, records)
            return {}

        return self._stage("evaluate", inputs, ["metrics.json", "predictions"], reader.count, "images", work)

    def _parts(self, split: Split, model: Checkpoint) -> Any:
        from megu_dist.data import plan
        from megu_dist.metrics.predict import PartReader

        s = self.settings
        limit, seed = s.evaluate.retain_train_limit, s.seed.evaluate
        kept = plan.sample(plan.complement(self.source.num_rows("train"), split.left_out), limit, seed, 0)
        scored = s.evaluate.split
        unseen = np.arange(self.source.num_rows(scored))
        # Of classes only: single images of a class that is still known may well be recognised.
        gone = split.already["row"].to_numpy()[np.isin(split.already["label"].to_numpy(), self.already)]
        parts = (
            ("retain_train", "train", kept),
            ("forget_train", "train", split.rows),
            ("retain_test", scored, unseen),
            ("already_train", "train", plan.sample(gone, limit, seed, 0)),
        )
        forgotten = self.subclasses if self.fine else self.classes
        by = "fine" if self.fine else "label"
        return PartReader(self.source, model.preprocess, parts, tuple(forgotten), by, tuple(self.already))

    def _deep_job(self, split: Split, original: Checkpoint) -> Any:
        from megu_dist.data.split import scan
        from megu_dist.metrics.deep import DeepJob, balanced

        s, by = self.settings, "fine" if self.fine else "label"
        forgotten = self.subclasses if self.fine else self.classes
        table, _ = scan(self.source, "train", None, columns=("row", by))
        table = table.filter(pa.array(~np.isin(table["row"].to_numpy(), split.already["row"].to_numpy())))
        unseen, _ = scan(self.source, s.evaluate.split, None, columns=("row", by))
        unseen = unseen["row"].to_numpy()[np.isin(unseen[by].to_numpy(), forgotten)]
        return DeepJob(
            folder="",
            original=str(original.folder),
            source=self.source,
            preprocess=original.preprocess,
            forget_rows=split.rows,
            probe_rows=balanced(table["row"].to_numpy(), table[by].to_numpy(), s.seed.evaluate),
            test_rows=unseen,
            test_split=s.evaluate.split,
            fine=self.fine,
            settings=s.evaluate,
            seed=s.seed.evaluate,
        )

    def _write_metrics(
        self,
        out: Path,
        split: Split,
        method: str,
        per_model: dict[str, Any],
        versus: dict[str, float] | None,
        floor: tuple[dict[str, float], dict[str, float]] | None,
        seconds: dict[str, float],
        records: list[Record],
    ) -> None:
        s = self.settings
        info = {record.stage: record.info for record in records}
        data: dict[str, Any] = {
            "schema": 1,
            "scenario": s.forget.scenario,
            "forget": {"count": len(split.rows), "classes": self.forgotten_names},
            "method": method,
            "class_names": self.names,
            "models": per_model,
            "seconds": seconds,
            "oracle": info.get("oracle"),
            "engine": {
                "name": s.engine.name,
                "zero_stage": getattr(s.engine, "zero_stage", None),
                "world_size": info.get("finetune", {}).get("world_size", s.train.num_workers),
            },
            "environment": environment(),
        }
        if gone := len(split.already):
            data["already"] = {"count": gone, "classes": [self.names[label] for label in self.already]}
        if versus is not None:
            data["versus_retrained"] = versus
            trained = _training_seconds(str(s.evaluate.retrained))
            if trained is not None:
                data["seconds"]["retrained_training"] = trained
                if "finetune" in seconds:
                    versus["seconds_ratio"] = (seconds.get("perturb", 0.0) + seconds["finetune"]) / trained
        if floor is not None:
            data["versus_floor"], data["floor_model"] = floor
        write_json(out / "metrics.json", data)

    def check_analysis(self) -> None:
        """Whether there is a concept to analyse."""
        from megu_dist.analysis.maps import check as check_map

        if not self.forgotten_names:
            raise UserError(
                f"megu analyze looks at forgotten classes: forget.scenario={self.settings.forget.scenario} names none; "
                "use class or subclass"
            )
        check_map(self.settings.analyze.map)

    def analyze(self, models: dict[str, Checkpoint]) -> Record:
        """``analysis.json`` and ``analysis/`` (map, figures): how entangled what is forgotten is with its "
        "neighbours."""
        from megu_dist.analysis.request import make_request
        from megu_dist.analysis.stage import analyze
        from megu_dist.report.analysis import write_figures

        s = self.settings
        source = self.source.fine if self.fine and self.source.fine is not None else self.source
        targets = self.subclasses if self.fine else self.classes
        request = make_request(source.class_names, targets, self.folder, s.analyze, s.seed.evaluate)
        prints = {name: model.fingerprint() for name, model in models.items()}
        inputs: dict[str, Any] = {"data": self.source.fingerprint(), "models": prints, "analyze": asdict(s.analyze)}
        inputs |= {"targets": targets, "seed": s.seed.evaluate, "classes": request.classes}
        inputs["weights"] = {target: row.tolist() for target, row in request.weights.items()}

        total = len(request.classes) * s.analyze.images_per_class
        preprocess = next(iter(models.values())).preprocess

        def work(out: Path) -> dict[str, Any]:
            few = stream.few(total, preprocess.image_bytes, source.encoded_bytes("test"))
            actors = auto_actors(s.evaluate.num_actors, s.evaluate.num_gpus, few)
            told = {"scenario": s.forget.scenario, "fingerprints": prints}
            found = analyze(source, request, models, s.analyze, s.evaluate, s.seed.evaluate, actors, out, told,
                            self.reporter.update)  # fmt: skip
            write_figures(out)
            return found

        return self._stage("analyze", inputs, ["analysis.json", "analysis"], total, "images", work)

    def report(self, evaluated: Record) -> Record:
        """``report.html`` and ``figures/*.png``."""
        from megu_dist.report.render import write_report

        compare = self._compared()
        inputs = {"evaluate": evaluated.key, "report": asdict(self.settings.report), "version": version("megu-dist")}
        inputs["compare"] = [content_key({"text": (path / "metrics.json").read_text()}) for path in compare]

        def work(out: Path) -> None:
            write_report(self.folder, out, compare, self.settings.report.images)
            self.reporter.update(1)

        return self._stage("report", inputs, ["report.html", "figures"], 1, "page", work)


def train(pipeline: Pipeline) -> None:
    """The original model, or with ``exclude_forget`` the retrained reference."""
    pipeline.check_cluster()
    s = pipeline.settings
    s = replace(s, method=lookup("method", "retrain").settings(name="retrain"))  # type: ignore[misc]
    pipeline.settings = s
    if s.exclude_forget:
        split, record = pipeline.split()
        key = record.key
    else:
        from megu_dist.data.base import INDEX_SCHEMA

        key = content_key({"data": pipeline.source.fingerprint()})
        split = Split(pa.table({f.name: pa.array([], f.type) for f in INDEX_SCHEMA}), np.zeros(len(pipeline.names)))
        pipeline.tolerate(split.rows)
    start = None if s.model.path is None else pipeline.open_model(s.model.path, "model.path")
    record = pipeline.finetune(split, key, start, None)
    write_json(pipeline.folder / "training.json", {"seconds": record.seconds, **record.info})


def unlearn(pipeline: Pipeline, models: dict[str, Checkpoint]) -> None:
    """split → oracle → perturb → finetune → evaluate → report."""
    pipeline.check_cluster()
    split, split_record = pipeline.split()
    records = [split_record]
    method = lookup("method", pipeline.settings.method.name).target
    perturbed = None
    if method.needs_perturbed:
        records.append(pipeline.oracle(split, split_record.key, models["original"]))
        perturbed = pipeline.perturb(split, split_record.key, models["original"], records[-1])
        records.append(perturbed)
    records.append(pipeline.finetune(split, split_record.key, models["original"], perturbed))
    unlearned = open_checkpoint(str(pipeline.folder / "model"))
    ordered = {"original": models["original"], "unlearned": unlearned} | models
    evaluated = pipeline.evaluate(split, split_record.key, ordered, records, pipeline.settings.method.name)
    pipeline.report(evaluated)


def evaluate(pipeline: Pipeline, models: dict[str, Checkpoint]) -> None:
    """Scores given models (``model.path`` original; the run's own model or the retrained one beside it)."""
    split, record = pipeline.split()
    pipeline.evaluate(split, record.key, models, [record], pipeline.settings.method.name)


def oracle(pipeline: Pipeline) -> None:
    """Fills T for the forget request."""
    split, record = pipeline.split()
    path = pipeline.settings.model.path
    pipeline.oracle(split, record.key, pipeline.open_model(path, "model.path") if path else None)


def environment() -> dict[str, str]:
    """Versions and machine, for the report."""
    names = ("megu-dist", "torch", "ray", "deepspeed", "transformers", "pyarrow", "numpy")
    found = {name: version(name) for name in names}
    return {"python": platform.python_version(), **found, "machine": platform.machine(), "cpus": str(os.cpu_count())}


def version(name: str) -> str:
    """Installed version of a distribution, or "-"."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "-"


def _keyed(settings: Any) -> dict[str, Any]:
    return keyed(asdict(settings))


def _training_seconds(retrained: str) -> float | None:
    """Seconds that the retrained reference took, from the ``training.json`` beside its model folder."""
    path = Path(retrained).expanduser().resolve().parent / "training.json"
    return float(json.loads(path.read_text())["seconds"]) if path.is_file() else None
