"""What the product costs and stands: steps, workers, plans, faults made on purpose."""
