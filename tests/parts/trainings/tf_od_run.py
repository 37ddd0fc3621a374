"""Models of the TensorFlow Object Detection API, built, exported and evaluated by the API itself; random weights.

    python tf_od_run.py FOLDER NAME

`test_tf_object_detection.py` starts it as a process: the API is of Keras 2 (`tf_keras`) and its messages are of an older
protobuf, which are both settings of a whole process. FOLDER gets the export, what it answered to the pictures, true
boxes (some of these answers, moved about) and the figures of `CocoDetectionEvaluator`; the model as `model_builder` makes it
is recorded here.
"""

from __future__ import annotations

import json
import os
import sys
import types
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    os.environ["PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"] = "python"

import numpy as np
import tensorflow as tf

CLASSES = 4
SIZES = ((96, 128), (60, 140), (128, 128), (130, 90), (100, 100), (96, 140))
"""Of the pictures: height, width."""
MISSING = ("tensorflow_io", "official.vision.image_classification.efficientnet.efficientnet_model")
"""Imported for DeepMAC and EfficientDet alone; no release of them goes with this TensorFlow."""

WEIGHTS = "regularizer { l2_regularizer {} } initializer { random_normal_initializer { stddev: 0.1 } }"
SUPPRESSION = """batch_non_max_suppression {
  score_threshold: 1e-8 iou_threshold: 0.6 max_detections_per_class: 20 max_total_detections: 40 }"""
SSD = """ssd {
  num_classes: 4
  image_resizer { fixed_shape_resizer { height: 96 width: 96 } }
  feature_extractor {
    type: "ssd_mobilenet_v2_keras" depth_multiplier: 0.25 min_depth: 8 override_base_feature_extractor_hyperparams: true
    conv_hyperparams { activation: RELU_6 WEIGHTS batch_norm {} }
  }
  box_coder { faster_rcnn_box_coder {} }
  matcher { argmax_matcher { matched_threshold: 0.5 unmatched_threshold: 0.5 } }
  similarity_calculator { iou_similarity {} }
  anchor_generator { ssd_anchor_generator {
    num_layers: 6 min_scale: 0.2 max_scale: 0.95 aspect_ratios: 1.0 aspect_ratios: 2.0 aspect_ratios: 0.5 } }
  box_predictor { convolutional_box_predictor { kernel_size: 1 conv_hyperparams { activation: RELU_6 WEIGHTS } } }
  post_processing { SUPPRESSION score_converter: CONVERTER }
  loss { classification_loss { LOSS } localization_loss { weighted_smooth_l1 {} } }
}"""
RCNN = """faster_rcnn {
  num_classes: 4
  image_resizer { keep_aspect_ratio_resizer { min_dimension: 64 max_dimension: 128 pad_to_max_dimension: true } }
  feature_extractor { type: "faster_rcnn_resnet50_keras" batch_norm_trainable: true }
  first_stage_anchor_generator { grid_anchor_generator {
    scales: [0.125, 0.25] aspect_ratios: [0.5, 1.0, 2.0] height_stride: 16 width_stride: 16 } }
  first_stage_box_predictor_conv_hyperparams { op: CONV WEIGHTS }
  first_stage_nms_iou_threshold: 0.7 first_stage_max_proposals: 30
  initial_crop_size: 7 maxpool_kernel_size: 1 maxpool_stride: 1
  second_stage_box_predictor { mask_rcnn_box_predictor { fc_hyperparams { op: FC WEIGHTS } share_box_across_classes: true } }
  second_stage_post_processing { SUPPRESSION score_converter: SOFTMAX }
}"""
CENTER = """center_net {
  num_classes: 4
  feature_extractor { type: "hourglass_10"
    channel_means: 128 channel_means: 128 channel_means: 128 channel_stds: 60 channel_stds: 60 channel_stds: 60 }
  image_resizer { keep_aspect_ratio_resizer { min_dimension: 128 max_dimension: 128 pad_to_max_dimension: true } }
  object_detection_task { localization_loss { l1_localization_loss {} } }
  object_center_params { max_box_predictions: 40
    classification_loss { penalty_reduced_logistic_focal_loss { alpha: 2.0 beta: 4.0 } } }
}"""
SIGMOID = {"CONVERTER": "SIGMOID", "LOSS": "weighted_sigmoid_focal { gamma: 2 alpha: 0.25 }"}
CONFIGS = {
    "ssd": (SSD, SIGMOID),
    "ssd_softmax": (SSD, {"CONVERTER": "SOFTMAX", "LOSS": "weighted_softmax {}"}),
    "faster_rcnn": (RCNN, {}),
    "center_net": (CENTER, {}),
}
OUTPUTS = (
    ("rpn_box_encodings", "FirstStageBoxPredictor", "BoxEncodingPredictor", 0.5),
    ("rpn_objectness_predictions_with_background", "FirstStageBoxPredictor", "ClassPredictor", 1.5),
    ("refined_box_encodings", "mask_rcnn_box_head", "BoxEncodingPredictor", 0.5),
    ("class_predictions_with_background", "mask_rcnn_class_head", "ClassPredictor", 1.5),
    ("class_predictions_with_background", "ssd_meta_arch", "ClassPredictor", 1.5),
    ("box_encodings", "ssd_meta_arch", "BoxEncodingPredictor", 0.5),
)
"""Of SSD and R-CNN: what they predict, words in the names of its last layers' weights, the spread that it gets."""
HEADS = (("object_center", 0.7, -2.0), ("box/scale", 2.0, 6.0))
"""Of CenterNet: the same by head, and its bias; sizes are in cells of 4 pixels."""


def imported() -> None:
    """What the API imports and does not use here stands empty."""
    for name in MISSING:
        parts = name.split(".")
        for n in range(1, len(parts) + 1):
            module = sys.modules.setdefault(".".join(parts[:n]), types.ModuleType(".".join(parts[:n])))
            if n > 1:
                setattr(sys.modules[".".join(parts[: n - 1])], parts[n - 1], module)


def spread(model: Any, picture: Any) -> None:
    """Last layers are scaled, so that untrained scores and boxes differ and are no ties."""
    for key, *names, wanted in OUTPUTS:
        predicted = model.predict(*model.preprocess(tf.cast(picture, tf.float32)))
        if key not in predicted:
            continue
        found = predicted[key] if isinstance(predicted[key], list) else [predicted[key]]
        scale = wanted / max(float(np.std(np.concatenate([one.numpy().ravel() for one in found]))), 1e-12)
        for weight in model.trainable_variables:
            if all(name in weight.name for name in (*names, "kernel")):
                weight.assign(weight * scale)
    for key, wanted, start in HEADS if hasattr(model, "_prediction_head_dict") else ():
        found = model.predict(*model.preprocess(tf.cast(picture, tf.float32)))[key][-1]
        kernel, bias = model._prediction_head_dict[key][-1].trainable_variables[-2:]
        kernel.assign(kernel * (wanted / float(np.std(found.numpy()))))
        bias.assign(tf.fill(bias.shape, start))


def build(name: str) -> tuple[Any, Any]:
    """The pipeline's configuration and its model."""
    from google.protobuf import text_format
    from object_detection.builders import model_builder
    from object_detection.protos import pipeline_pb2

    text, more = CONFIGS[name]
    for word, value in ({"SUPPRESSION": SUPPRESSION, "WEIGHTS": WEIGHTS} | more).items():
        text = text.replace(word, value)
    pipeline = text_format.Parse(f"model {{ {text} }}", pipeline_pb2.TrainEvalPipelineConfig())
    tf.keras.utils.set_random_seed(3)
    model = model_builder.build(pipeline.model, is_training=False)
    picture = pictures()[0]
    model(tf.cast(picture, tf.float32))
    spread(model, picture)
    return pipeline, model


def pictures() -> list[Any]:
    """Coarse noise."""
    rng = np.random.default_rng(4)
    return [
        tf.cast(tf.image.resize(rng.integers(0, 255, (1, 6, 8, 3)), size, "bicubic"), tf.uint8)
        for size in SIZES
    ]


def some_of(boxes: Any, labels: Any, rng: Any) -> tuple[Any, Any]:
    """Some of a picture's boxes (N, 4) in its pixels, moved about, of a class that is now and then another."""
    sides = boxes[:, 2:] - boxes[:, :2]
    rows = np.flatnonzero((sides > 6).all(1))[::3][:5]
    moved = boxes[rows] + rng.normal(0, 0.05, (len(rows), 4)) * np.tile(sides[rows], 2)
    return moved, np.where(rng.random(len(rows)) < 0.2, 1, labels[rows])


def main(folder: Path, name: str) -> None:
    """See the module."""
    imported()
    from object_detection import exporter_lib_v2
    from object_detection.metrics.coco_evaluation import CocoDetectionEvaluator

    from ml_debugger.training import ObjectDetectionTracer

    pipeline, model = build(name)
    start = str(folder / "start")
    tf.train.CheckpointManager(tf.train.Checkpoint(model=model), start, 1).save()
    exporter_lib_v2.export_inference_graph("image_tensor", pipeline, start, str(folder))
    exported = tf.saved_model.load(str(folder / "saved_model"))
    evaluator = CocoDetectionEvaluator([{"id": n, "name": str(n)} for n in range(1, CLASSES + 1)])
    tracer = ObjectDetectionTracer(model, name, "built")
    rng, kept = np.random.default_rng(0), {}
    for number, (picture, size) in enumerate(zip(pictures(), SIZES, strict=True)):
        answer = {key: value.numpy()[0] for key, value in exported(picture).items() if "detection" in key}
        count = int(answer["num_detections"])
        scale = np.array([*size, *size], np.float32)
        boxes, labels = (
            answer["detection_boxes"][:count] * scale,
            answer["detection_classes"][:count].astype(int),
        )
        true, names = some_of(boxes, labels, rng)
        crowd = np.arange(len(true)) == 4
        evaluator.add_single_ground_truth_image_info(
            number,
            {
                "groundtruth_boxes": true,
                "groundtruth_classes": names,
                "groundtruth_is_crowd": crowd.astype(int),
            },
        )
        found = {"detection_boxes": boxes, "detection_classes": labels}
        evaluator.add_single_detected_image_info(
            number, found | {"detection_scores": answer["detection_scores"][:count]}
        )
        kept |= {f"{number}_{key}": value for key, value in answer.items()}
        truth = {"groundtruth_boxes": true[None] / scale, "groundtruth_classes": names[None]}
        truth["groundtruth_is_crowd"] = crowd[None]
        kept |= {f"{number}_{key}": value for key, value in truth.items()}
        tracer(tf.cast(picture, tf.float32), truth, [str(number)], "val")
    tracer.wait_for_save(timeout=60)
    figures = {key: float(value) for key, value in evaluator.evaluate().items()}
    np.savez(folder / "kept.npz", **kept)
    (folder / "figures.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
