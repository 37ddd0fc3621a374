"""A run as its training goes on: `state` says whether it does, `curves` what is known of each pass.

Open `curves` first. Figures come from what was evaluated (exact), from the evaluation beside the training,
and, where neither is there yet, from the scalar columns of the records.
"""
