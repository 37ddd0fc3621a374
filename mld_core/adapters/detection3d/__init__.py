"""3D detectors: framework (`mmdet3d`, `openpcdet`, `det3d`), family (`probe`), head (`heads`)."""

from mld_core.adapters.detection3d import families

__all__ = ["families"]
