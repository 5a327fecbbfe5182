"""The network: layers and recursion. Imports torch alone."""
