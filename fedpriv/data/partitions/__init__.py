"""Families of partitions; `fedpriv.data.partition` is their registry."""
