"""Workloads, rivals, measuring and reporting."""
