"""What a test is made of: the clause it shows, the cases it asks, and what comes of them."""
