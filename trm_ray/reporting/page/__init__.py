"""The report: one HTML file that says what runs tell about each other, opens from disk and asks nothing of a network."""
