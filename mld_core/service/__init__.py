"""A team's store behind HTTP: `server`, `client`, and the `protocol` that both read. Open that first."""
