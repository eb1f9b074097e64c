"""What the programs do: arguments, calls, printing. `train/`, `export/` and `serving/` are thin doors to these."""
