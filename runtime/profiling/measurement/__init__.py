"""Measure: run workloads, read the machine's counters, and make a profile's figures of them."""
