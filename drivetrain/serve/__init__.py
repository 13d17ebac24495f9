"""The server: protocols, batching and feedback around a bundle's graph."""
