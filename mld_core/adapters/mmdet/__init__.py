"""MMDetection's detectors: `detectors` is the adapter, `heads` one reader for each kind of head."""
