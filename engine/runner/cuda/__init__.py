"""Runs steps on a CUDA device: state that stays there, graphs, sampling."""
