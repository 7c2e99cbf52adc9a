"""Renders samples with drawn parameters to pairs, confines crashes of decoders, and counts bad samples."""
