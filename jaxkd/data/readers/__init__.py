"""Readers: one file for each kind of thing that holds a data set."""
