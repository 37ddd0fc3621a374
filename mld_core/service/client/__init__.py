"""The team server's client: `api` (one call a route) and the uploader on it. Open `api` first."""
