"""What a GPU is worth to gpumask: ``python -m benchmarks.gpu``, see `benchmarks.gpu.__main__`."""
