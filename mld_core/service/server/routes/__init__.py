"""The HTTP routes, one file a kind of thing: they check who asks, and hand on. Open `runs` first."""
