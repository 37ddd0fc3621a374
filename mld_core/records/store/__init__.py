"""What is done with a store as a whole.

The ZIP (`export`), joining stores (`merge`), the PNGs in it (`png`).
"""
