"""Pure functions on arrays: the figures that trainers print.

`classification`, `coco`, `tide`, `kitti`, `nuscenes`; `boxes` and `matching` are what the detection metrics
stand on. Nothing here reads a record. Open the metric you look for.
"""
