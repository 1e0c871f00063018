"""What was computed once, kept within bounded memory."""
