"""What a user holds: `Result` (open `result` first), its tables and store, views, heatmaps, comparisons."""
