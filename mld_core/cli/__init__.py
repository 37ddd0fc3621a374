"""The mld command."""
