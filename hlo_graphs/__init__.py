"""HLO in, `Program` out: parsing, aliasing, lifetimes, costs and the corpus of real programs."""
