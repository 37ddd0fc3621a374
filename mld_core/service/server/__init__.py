"""The service: a team's store behind HTTP. Needs the extra `server`; only `mld serve` and its kin load it."""
