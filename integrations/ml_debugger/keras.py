"""Keras, without PyTorch: `MLDebuggerCallback` for `model.fit`, `ObjectDetectionTracer` for one's own loops.

    model.fit(train, epochs=10, callbacks=[MLDebuggerCallback("shelf", data={"val": val_dataset})])

A Keras callback sees neither inputs nor outputs, so after each epoch the callback runs the model over the
data sets given to it, in inference mode, and records every final detection with its class logits. They yield
batches (images, truth), (images, truth, ids), or dicts with "images", "bounding_boxes" and, if there are any,
"image_id". KerasCV's, KerasHub's and TensorFlow Object Detection API models are read as they are; for another
model give `parse_fn(output, image_sizes)` that returns a `DetectionOutput`, and `n_class`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

try:
    import keras
except ImportError as error:
    raise ImportError("ml_debugger.keras needs Keras 3: pip install tensorflow keras") from error

from mld_core.adapters.outputs import DetectionOutput
from mld_core.records.export import export_run
from mld_core.tracing.keras_tracer import KerasRecorder, ParseFn

__all__ = ["DetectionOutput", "MLDebuggerCallback", "ObjectDetectionTracer"]


class MLDebuggerCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Records a detector over the given data sets after each epoch.

    Args:
        model_name: None: the class name of the model.
        version_name: None: the next free `v<k>`.
        data: split -> data set: anything that yields batches anew each time it is iterated.
        parse_fn: for models of one's own (see the module).
        max_batches: most batches of a data set that are recorded each epoch, None: all.
        options: as of every wrapper: id_fn, label_fn, input_fn, fields_fn, score_thresh, iou_thresh,
            max_detections, every_n_epochs, store, ...
    """

    def __init__(
        self,
        model_name: str | None = None,
        version_name: str | None = None,
        *,
        data: Mapping[str, Any],
        parse_fn: ParseFn | None = None,
        max_batches: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.data = dict(data)
        self.max_batches = max_batches
        self.recorder = KerasRecorder(
            parse_fn=parse_fn, model_name=model_name, version_name=version_name, task="detection", **options
        )
        self.seconds = 0.0

    def on_train_begin(self, logs: Any = None) -> None:
        """Opens the store."""
        self.recorder.start(self.model)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Runs the model over the data sets."""
        started = time.perf_counter()
        for split in self.data:
            if self.recorder.options.records_split(split) and self.recorder.options.records_epoch(epoch):
                self.run_split(split, epoch)
        self.seconds += time.perf_counter() - started

    def on_train_end(self, logs: Any = None) -> None:
        """Flushes and closes."""
        self.recorder.finish()

    def run_split(self, split: str, n_epoch: int | None) -> None:
        """One pass over one of the data sets; also callable by hand after the training of an epoch."""
        recorder = self.recorder
        if not recorder.enabled:
            return
        with recorder.guard.catch(f"running the model over {split!r}", lost="that pass"):
            recorder.begin_pass(split, n_epoch)
            for number, batch in enumerate(self.data[split]):
                if self.max_batches is not None and number >= self.max_batches:
                    break
                self._record(split, batch)
            recorder.end_pass(split)

    def _record(self, split: str, batch: Any) -> None:
        options = self.recorder.options
        images, truth, ids = unpack(batch)
        if options.input_fn is not None:
            images = options.input_fn(batch)
        if options.label_fn is not None:
            truth = options.label_fn(batch)
        source, optimizer = "image_id", getattr(self.model, "optimizer", None)
        if options.id_fn is not None:
            ids, source = options.id_fn(batch), "id_fn"
        self.recorder.record(
            split,
            images,
            self.recorder.model(images, training=False),
            truth=truth,
            ids=ids,
            id_source=source,
            user=options.fields_fn(batch) if options.fields_fn is not None else None,
            global_step=None if optimizer is None else int(optimizer.iterations),
        )


class ObjectDetectionTracer:
    """Records a Keras or TensorFlow detector, called by hand; arguments as of `ml_debugger.training`'s.

    Args:
        model: called with the images and `training=False`.
        model_name: of the run.
        version_name: of the run.
        target_layers: not used by Keras models.
        additional_fields: the user's columns; values come as keyword arguments of the call.
        additional_label_fields: not used by Keras models.
        auto_sync: as of every tracer.
        force_table_recreate: starts this model's version anew.
        api_endpoint: of a team's service.
        api_key: for it.
        n_class: where the model does not tell.
        score_thresh: None: the model's, else 0.05.
        iou_thresh: None: the model's, else 0.5.
        max_detections_per_image: None: the model's, else 300.
        parse_fn: for models of one's own (see the module).
        store: folder of the records.
    """

    def __init__(
        self,
        model: Any,
        model_name: str,
        version_name: str,
        target_layers: Mapping[str, str] | None = None,
        additional_fields: Any = None,
        additional_label_fields: Any = None,
        auto_sync: bool = False,
        force_table_recreate: bool = False,
        api_endpoint: str | None = None,
        api_key: str | None = None,
        n_class: int | None = None,
        score_thresh: float | None = None,
        iou_thresh: float | None = None,
        max_detections_per_image: int | None = None,
        *,
        parse_fn: ParseFn | None = None,
        store: Any = None,
    ) -> None:
        self.recorder = KerasRecorder(
            parse_fn=parse_fn,
            model_name=model_name,
            version_name=version_name,
            task="detection",
            target_layers=target_layers,
            additional_fields=additional_fields,
            additional_label_fields=additional_label_fields,
            auto_sync=auto_sync,
            force_table_recreate=force_table_recreate,
            api_endpoint=api_endpoint,
            api_key=api_key,
            n_class=n_class,
            score_thresh=score_thresh,
            iou_thresh=iou_thresh,
            max_detections=max_detections_per_image,
            store=store,
        )
        self.model = model
        self.recorder.start(model)

    def __call__(
        self,
        model_input: Any,
        ground_truth: Any,
        input_ids: Any,
        dataset_type: str = "train",
        n_epoch: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Runs the model in inference mode on images (B, H, W, C), records, returns its raw output."""
        output = self.model(model_input, training=False)
        recorder = self.recorder
        if not recorder.is_open(dataset_type) or recorder.open_epoch(dataset_type) != n_epoch:
            recorder.begin_pass(dataset_type, n_epoch)
        recorder.record(dataset_type, model_input, output, truth=ground_truth, ids=input_ids, user=kwargs)
        return output

    def get_hooked_features(self, layer_name: str) -> Any:
        """The features of the latest call's detections, per image (N, D).

        Raises:
            KeyError: another name than "features", or none were found.
        """
        if layer_name != "features" or self.recorder.last_features is None:
            raise KeyError(f"{layer_name!r}: Keras models have the alias 'features', after a call")
        return self.recorder.last_features

    def wait_for_save(self, n_epoch: int | None = None, *, timeout: float | None = None) -> bool:
        """Seals that epoch's passes and waits until they are on disk."""
        recorder = self.recorder
        for split in recorder.open_splits():
            if recorder.open_epoch(split) == n_epoch:
                recorder.end_pass(split)
        return recorder.wait_for_save(n_epoch, timeout)

    def export(self, output_path: Any = None, n_epoch: int | None = None) -> Any:
        """A ZIP of what was recorded; its path."""
        store, run = self.recorder.store_and_run()
        return export_run(store, run, output_path, n_epoch)


def unpack(batch: Any) -> tuple[Any, Any, Any]:
    """Images, truth and ids of a batch: (x, y), (x, y, ids), or KerasCV's dict.

    >>> unpack(("x", "y"))
    ('x', 'y', None)
    """
    if isinstance(batch, Mapping):
        truth = batch.get("bounding_boxes", batch.get("labels"))
        return batch["images"], truth, batch.get("image_id", batch.get("input_id"))
    if isinstance(batch, (tuple, list)):
        images, truth, ids = [*batch, None, None][:3]
        return images, truth, ids
    return batch, None, None
