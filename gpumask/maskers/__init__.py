"""The estimators: nilearn's maskers, with its parameters and attributes."""
