"""From arrays to sealed parts on disk. `writer`'s docstring is the write protocol: open it first.

`worker` is the writer's thread, `openpass` one pass being written; `retention` and `gc` take away what is no
longer kept.
"""
