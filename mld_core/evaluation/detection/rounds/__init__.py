"""A detector's pass evaluated in rounds over its parts, each of which is read as a small pass.

Open `method` first. Boxes are matched and judged as in memory; they are scored as the classification's rounds
score units.
"""
