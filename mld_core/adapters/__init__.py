"""What a detector said, read from its own objects: a file or folder a family, no framework imported.

Open `base` first (what an adapter answers), then `registry` (how one is found). The built-in families are
loaded when one is first looked for; those that read tensors only where torch is installed.
"""

from importlib.util import find_spec

from mld_core.adapters.registry import load_first


def _built_in() -> None:
    import mld_core.adapters.keras.detectors

    if find_spec("torch") is not None:
        import mld_core.adapters.centernet
        import mld_core.adapters.detection3d.families
        import mld_core.adapters.detr.facebook
        import mld_core.adapters.detr.huggingface
        import mld_core.adapters.mmdet.detectors
        import mld_core.adapters.torchvision.dense
        import mld_core.adapters.torchvision.rcnn
        import mld_core.adapters.ultralytics.rtdetr
        import mld_core.adapters.ultralytics.yolo  # noqa: F401


load_first(_built_in)
