"""What is done with a trained network: its p* and its whitening."""
