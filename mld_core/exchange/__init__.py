"""Records in the formats of other tools, and back: one file a format. Open the format you need."""
