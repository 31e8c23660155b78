"""What is learnt: schema, encoding, moments, generators, discriminators, losses, sampling. Pure."""
