#!/usr/bin/env python3
"""onnx_run.py MODEL INPUT OUTPUT N C H W: runs an exported network in ONNX Runtime on N float32 images; checks the model first where `onnx` is installed."""
import sys
import numpy as np
import onnxruntime
model, source, target, *shape = sys.argv[1:]
try:
    import onnx
    onnx.checker.check_model(onnx.load(model), full_check=True)
except ImportError:
    pass
session = onnxruntime.InferenceSession(model, providers=['CPUExecutionProvider'])
x = np.fromfile(source, np.float32).reshape([int(s) for s in shape])
session.run(['logits'], {'input': x})[0].astype(np.float32).tofile(target)
