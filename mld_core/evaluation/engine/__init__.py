"""How an evaluation is computed: the one `executor`, and the records of `passes` it walks over.

Open `executor` first.
"""
