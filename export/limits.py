"""What a server of this package's models and its client accept at most."""

MAX_ROWS = 32  # per request: max_batch_size in export/serving/batching_parameters.txt
MAX_PIXELS = 4096 * 4096  # of a picture in a request, by its header
MAX_REPLY = 40_000_000  # bytes; 32 images of 256x256 in colour take 34 million over REST
