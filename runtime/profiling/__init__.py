"""Measure where a report's time goes on this machine; draw, compare and bound the result."""
