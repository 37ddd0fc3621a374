"""What a store is: families and columns (`schema`), folders (`layout`), manifests, parts, attempts.

Pure knowledge of the format, no thread, no walk over a store. Open `schema` first, then `layout`.
"""
