"""Whole systems on the spine; deleting one leaves the rest as it was."""
