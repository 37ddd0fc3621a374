"""What classification adds: its scalars, diagnoses and method. Open `method` first."""
