"""The on-disk record format and everything that touches it: schema, writer, manifests, reader, export."""
