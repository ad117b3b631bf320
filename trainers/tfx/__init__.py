"""TensorFlow Extended: training, examples and the gate of a pipeline."""
