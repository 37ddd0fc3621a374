"""Records in the formats of other tools, and back: one file a format. Open the format you need.

`export` writes passes in one of them; `frames` reads a pass as they all need it.
"""
