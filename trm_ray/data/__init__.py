"""Puzzles as token rows: the Parquet format, generators and symmetries. Imports numpy and pyarrow alone."""
