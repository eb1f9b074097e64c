"""What is done with a trained network: p*, whitening, scores."""
