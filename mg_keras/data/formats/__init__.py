"""What TensorFlow's decoders leave to do, one kind of file a module; in the graph, of TensorFlow's own operations."""
