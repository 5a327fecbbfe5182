"""What is read from run folders: logs, dashboards, comparisons, health."""
