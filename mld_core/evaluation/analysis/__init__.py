"""One split, any task: error probability, categories, label quality. Open `analysis` first.

What differs by task (diagnoses, suffixes, columns) is handed in by the task's own room.
"""
