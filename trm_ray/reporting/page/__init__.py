"""The report: one HTML file on what runs tell about each other, which opens from disk and needs no network."""
