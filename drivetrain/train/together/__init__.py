"""Processes that train one model: how they meet, and how their gradients come together."""
