"""Images on the host, in NumPy arrays: streams of stored volumes, voxel grids, atlases and masks."""
