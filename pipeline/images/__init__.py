"""Image files before they are pixels: the header check, file layouts, codecs, and Pillow for unusual kinds."""
