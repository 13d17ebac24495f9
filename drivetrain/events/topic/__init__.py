"""A topic of Kafka: its messages, what they hold, and where they stand."""
