"""The HTTP client and server of a team's store."""
