"""Networks that see pictures."""
