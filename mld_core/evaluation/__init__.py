"""From records to a Result: metrics, error codes, tables; no torch, no framework."""
