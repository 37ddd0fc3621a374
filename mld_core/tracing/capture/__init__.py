"""Hooks on the user's model and what they keep: no synchronisation, no copy the step waits for.

Open `capture` first (the hooks), then `heads` (which layer makes the logits) and `detectors`.
"""
