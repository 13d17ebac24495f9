"""Drivetrain: one declared system, from events to served, explained and monitored predictions."""
