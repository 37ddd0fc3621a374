"""HTML reports from a Result."""
