"""Which sequence is next on the decoder, and what a step of it does."""
