"""Readers: a module for each storage format of data sets, which `jaxkd.data.open_source` chooses among."""
