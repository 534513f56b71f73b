"""``python -m benchmarks.gpu_report``: speed and memory of models at true size, with random weights."""
