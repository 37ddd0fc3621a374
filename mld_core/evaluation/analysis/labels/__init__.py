"""Which labels are wrong. Open `quality` first."""
