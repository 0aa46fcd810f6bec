"""How families of implementations are called."""
