"""3D detectors: an adapter is a framework's layout and a reader of the head, whatever the detector's class.

Open `families` first, then `probe` (whose model is it); `mmdet3d`, `openpcdet` and `det3d` are the frameworks
on `layouts`, `heads` the kinds of heads, `frames` what a frame's detections are.
"""
