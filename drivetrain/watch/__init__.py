"""Probes, drift, exposition, dashboards and the listeners of the metric stream."""
