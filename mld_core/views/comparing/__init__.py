"""Two results of one task side by side, as a page asks: what moved, which units were fixed or regressed."""
