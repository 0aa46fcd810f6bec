"""Problems written as files with their exact answers and bounds, and answers that were made anywhere read back."""
