"""What a model is calibrated with, and its way through the model, a layer at a time: every linear layer is shown to a visitor."""
