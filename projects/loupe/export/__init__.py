"""The model as a graph that runs without Loupe: ONNX and torch.export.

twins.py       parts of the model that compute the same with what ONNX has
network.py     pixels in, probability and maps out: what is exported
graph.py       writing, checking and quantising the graph
"""
