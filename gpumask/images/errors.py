"""Errors of the images that a user passes."""


class ImageError(ValueError):
    """An image is broken or unsupported; the message names the image, the problem and what was expected."""


class DimensionError(TypeError):
    """An image, or a list of images, has the wrong number of dimensions."""
