"""What 3D detection adds to `detection`: geometry, bins along the road, sensor diagnoses.

Open `profile` first.
"""
