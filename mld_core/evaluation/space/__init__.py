"""The feature space of a split: scaling, neighbours, cells, regions. No task, no record.

Open `space` first.
"""
