"""Images on the host: streams of stored volumes, voxel grids, atlases and masks. Knows no array library but NumPy."""
