"""The names of the portable signatures, for clients as well: nothing here imports TensorFlow."""

# What they compute: `export.portable_signatures`.
PORTABLE_NAMES = ("decode_tensors", "sample_tensors", "infer_tensors")
