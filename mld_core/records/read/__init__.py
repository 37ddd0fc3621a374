"""From sealed parts to tables: `reader` (open it first) on `rows` (one pass) and `dedup` (what counts once).

`check` reads a whole store and says what is wrong with it.
"""
