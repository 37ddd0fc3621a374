"""The DETR families: Hugging Face's classes (`huggingface`) and facebookresearch's (`facebook`).

What they share is in `mld_core.adapters.queries`: open that first.
"""
