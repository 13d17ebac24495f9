"""What a server tells: metrics, access log, traces, and feedback as events."""
