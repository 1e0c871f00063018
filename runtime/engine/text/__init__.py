"""From tokens to text: whole characters, where it ends, what a later turn holds."""
