"""What a batch holds: `labels`, `truths`, `identity`, `modalities`, and the hash of its content.

Reads what the loader gave and what the loader is; knows no model and no table. Open `labels` first, then
`identity`.
"""
