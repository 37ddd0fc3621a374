"""What a detector said, read from its own objects: one file per family, no framework imported.

Importing the package registers the built-in families; those that read tensors only where torch is installed.
"""

from importlib.util import find_spec

from mld_core.adapters import keras_detectors  # noqa: F401

if find_spec("torch") is not None:
    from mld_core.adapters import (  # noqa: F401
        centernet,
        detr,
        detr_huggingface,
        mmdet,
        torchvision_dense,
        torchvision_rcnn,
        ultralytics,
        ultralytics_rtdetr,
    )
    from mld_core.adapters.detection3d import families  # noqa: F401
