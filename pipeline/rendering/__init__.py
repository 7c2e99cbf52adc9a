"""Samples and drawn parameters become pairs; crashes are confined, bad samples counted."""
