"""From logits to tokens, and how likely they were."""
