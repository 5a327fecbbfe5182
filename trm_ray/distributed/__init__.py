"""The only package that imports Ray: datasets, workers, trainer and tuner."""
