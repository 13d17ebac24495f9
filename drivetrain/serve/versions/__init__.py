"""Which versions of an alias answer: following it, canaries and their guard, shadows."""
