"""mmdet's detectors made small: ResNet-18, narrow, five classes, random weights, class layers whose logits vary."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import mmdet
import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config

CONFIGS = Path(mmdet.__file__).parent / ".mim" / "configs"
CLASSES = 5
FILES = {
    "retinanet": "retinanet/retinanet_r18_fpn_1x_coco.py",
    "fcos": "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py",
    "gfl": "gfl/gfl_r50_fpn_1x_coco.py",
    "ssdlite": "ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py",
    "yolox": "yolox/yolox_tiny_8xb8-300e_coco.py",
    "centernet": "centernet/centernet_r18_8xb16-crop512-140e_coco.py",
    "faster": "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py",
    "cascade": "cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py",
    "detr": "detr/detr_r18_8xb2-500e_coco.py",
    "deformable": "deformable_detr/deformable-detr_r50_16xb2-50e_coco.py",
    "dino": "dino/dino-4scale_r50_8xb2-12e_coco.py",
}
SOFTMAX = ("ssdlite", "faster", "cascade", "detr")
_made: dict[str, Any] = {}


def _small(cfg: Any) -> Any:
    """A shallow copy of the shipped architecture: ResNet-18, narrow, five classes, nothing pretrained."""
    model = cfg.model
    if model.backbone.type == "ResNet":
        model.backbone.update(depth=18, norm_cfg={"type": "BN"}, style="pytorch")
        widths = [64, 128, 256, 512]
        neck = model.get("neck")
        if neck is not None and neck.type in {"FPN", "ChannelMapper"}:
            neck.in_channels = [widths[i] for i in model.backbone.out_indices]
    model.backbone.init_cfg = None
    for owner in (model.get("bbox_head"), model.get("roi_head", {}).get("bbox_head")):
        for head in owner if isinstance(owner, list) else [owner]:
            if head is not None:
                head.num_classes = CLASSES
    for part in ("encoder", "decoder"):
        if part in model:
            model[part].num_layers = 2
    if "num_queries" in model:
        model.num_queries = 30
        model.test_cfg.max_per_img = 20
    model.data_preprocessor.batch_augments = None
    if "roi_head" in model:
        model.test_cfg.rpn.update(nms_pre=100, max_per_img=60)
        model.train_cfg.rpn_proposal.update(nms_pre=50, max_per_img=50)
    return model


def mmdet_detector(name: str) -> Any:
    """One of `FILES`, a copy of its own in evaluation mode."""
    if name not in _made:
        register_all_modules()
        torch.manual_seed(0)
        model = MODELS.build(_small(Config.fromfile(CONFIGS / FILES[name])))
        if name == "ssdlite":
            model.bbox_head.loss_cls = None  # mmdet 3.2.0 reads it in predict and never sets it
        model.init_weights()  # some parameters are memory as it was before
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for key, value in model.named_parameters():
                if any(part in key for part in ("cls", "heatmap_head.2", "query_embedding", "obj")):
                    value.add_(torch.randn(value.shape, generator=generator), alpha=0.2)
        _made[name] = model
    return copy.deepcopy(_made[name]).eval()
