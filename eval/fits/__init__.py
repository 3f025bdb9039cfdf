"""Curves of loss and error against caption tokens: their forms, and intervals of their parameters over seeds."""
