"""What drafting saves, and what it costs."""
