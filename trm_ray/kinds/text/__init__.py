"""Text: read, cut into tokens and packed into rows; every row's labels are its inputs a place later."""
