"""What 2D detection adds, and 3D stands on: events, units, codes, diagnoses, metrics. Open `method` first."""
