"""What a trained model is worth, in numbers: one file per family of metrics."""
