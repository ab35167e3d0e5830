"""The worked example on TensorFlow: `python -m trainer train --framework tensorflow`.

The same LeNet, ranges of its first weights, data, recipe and files as on PyTorch, with Keras' layers and its SGD. A run
is checkpointed at the ends of epochs and goes on from there, bit for bit on the CPU. TensorFlow is imported here and
nowhere else, and PyTorch nowhere here: a machine with tools: [tensorflow] needs no other. A run leaves its weights
under PyTorch's names too: where there is PyTorch, every command that reads a run reads it.
"""
