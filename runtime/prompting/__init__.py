"""Convert text and images to tokens and positions, and tokens back to text."""
