"""Components of a TensorFlow Extended (TFX) pipeline: training and the gate before serving."""
