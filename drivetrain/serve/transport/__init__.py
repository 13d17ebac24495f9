"""Bytes of a socket to whole requests and back: TLS, HTTP/1.1, HTTP/2, gRPC, and their limits."""
