"""The policies that datasets are collected with: their weights, and the training that makes them."""
