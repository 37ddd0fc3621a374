"""What a detector said, read from its own objects: one file per family, no framework imported."""
