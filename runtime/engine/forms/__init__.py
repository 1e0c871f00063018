"""Texts in a form: a form becomes a grammar, and a grammar the tokens that may follow, by llguidance."""
