"""Passes from graph to graph: smaller and faster, and measured."""
