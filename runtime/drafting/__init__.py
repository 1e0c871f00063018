"""Guess the next tokens of a report from phrases of other reports, so that one decoder call can check several of them."""
