"""MMDetection's detectors.

Open `detectors` first: it is the adapter; `heads` has one reader for each kind of head.
"""
