"""What can be wrong with an image that a user passes."""


class ImageError(ValueError):
    """An image is broken or of a kind that can't be used; the message names it, what is wrong and what was expected."""


class DimensionError(TypeError):
    """An image, or a list of images, has another number of dimensions than expected."""
