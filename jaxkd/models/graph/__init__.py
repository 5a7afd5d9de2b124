"""Networks for series of a graph's nodes."""
