"""How an operation reads its request: parsers of bodies and parameters, with their limits."""
