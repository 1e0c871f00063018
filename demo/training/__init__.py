"""Train the demo checkpoint: first its image side, then its decoder on texts about frames that the image side has encoded."""
