"""Pictures of pairs for people: the preview, the gallery, and palettes learnt from a corpus."""
