"""What is wrong with an answer: each of its numbers against the exact one and the bound."""
