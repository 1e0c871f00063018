"""Requests, events, tasks, sections, errors: values that every room speaks in."""
