"""A classifier's pass evaluated in rounds over its parts: what no machine has to hold at once.

Open `method` first. Fits are made on a sample, cells stand for neighbours, and every unit is scored where it
lies.
"""
