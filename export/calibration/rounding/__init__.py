"""What happens to a weight on the way: its inputs' moments, error feedback, the choice of bits, and the results until they are packed."""
