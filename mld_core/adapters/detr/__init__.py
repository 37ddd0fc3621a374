"""The DETR families: Hugging Face's classes (`huggingface`) and facebookresearch's (`facebook`)."""
