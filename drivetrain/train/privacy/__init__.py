"""Rows' gradients cut and hidden behind noise, and what that costs."""
