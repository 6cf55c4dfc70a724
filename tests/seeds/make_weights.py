#!/usr/bin/env python3
"""Writes tests/seeds/weights/*: small checkpoints of every container, as PyTorch and Python's zipfile write them (needs torch).

tests/test_torch_file.c knows their numbers; fuzz_weights starts from them. Run from the repository root; the result is checked in."""
import io, os, pickle, zipfile
from collections import OrderedDict
import torch

OUT = 'tests/seeds/weights/'
t = torch.arange(24, dtype=torch.float32).reshape(4, 6)

bare = OrderedDict(f=torch.arange(6.).reshape(2, 3) / 4, d=torch.tensor([1e-300, -2.], dtype=torch.float64), h=torch.tensor([1.5, -2.25]).half(),
                   b=torch.tensor([3., -0.5]).bfloat16(), l=torch.tensor(391), i=torch.tensor([-7, 8], dtype=torch.int32),
                   s=torch.tensor([-9], dtype=torch.int16), c=torch.tensor([-1, 2], dtype=torch.int8), u=torch.tensor([200], dtype=torch.uint8),
                   o=torch.tensor([True, False]), e=torch.zeros(0, 3), p=torch.nn.Parameter(torch.ones(2)))
torch.save(bare, OUT + 'bare.pth')
torch.save(bare, OUT + 'protocol4.pt', pickle_protocol=4)

strided = {'transposed': t.t(), 'slice': t[1:3, ::2], 'row': t[2], 'whole': t, 'again': t}
torch.save({'net': strided, 'note': 'text', 'list': [1, 2.5, None, (True,)]}, OUT + 'strided.pth')
torch.save({'net': strided}, OUT + 'strided-legacy.pth', _use_new_zipfile_serialization=False)
torch.save({'x': torch.tensor([7.]).expand(2, 3)}, OUT + 'expanded.pth')

net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
with torch.no_grad():
    for k, p in enumerate(net.parameters()): p.copy_(torch.arange(p.numel()).reshape(p.shape) + 10. * k)
optimizer = torch.optim.SGD(net.parameters(), .1, momentum=.9)
net(t[:, :2]).sum().backward(); optimizer.step()
with torch.no_grad():
    for k, p in enumerate(net.parameters()): p.copy_(torch.arange(p.numel()).reshape(p.shape) + 10. * k)
state = {'epoch': 3, 'best_acc1': torch.tensor(1.5), 'arch': 'two', 'optimizer': optimizer.state_dict(),
         'state_dict': torch.nn.DataParallel(net).state_dict()}
torch.save(state, OUT + 'wrapped.pth')
torch.save(state, OUT + 'wrapped-legacy.th', _use_new_zipfile_serialization=False)
torch.save(net, OUT + 'module.pth')

class Evil:
    def __reduce__(self): return os.system, ('touch executed',)
torch.save({'state_dict': {'x': torch.ones(1)}, 'z': Evil()}, OUT + 'evil.pth')
with open(OUT + 'evil.pkl', 'wb') as f: pickle.dump(Evil(), f, 2)

def rezip(name, source, **how):
    """The same entries through Python's zipfile: deflated, streamed (data descriptors), or with zip64 sizes."""
    with zipfile.ZipFile(OUT + source) as z: entries = [(n, z.read(n)) for n in z.namelist()]
    buffer = io.BytesIO()
    class Stream:  # not seekable: sizes go behind the data
        def write(self, b): return buffer.write(b)
        def flush(self): pass
    with zipfile.ZipFile(Stream() if how.get('stream') else buffer, 'w', how.get('method', zipfile.ZIP_STORED)) as z:
        for n, data in entries:
            info = zipfile.ZipInfo(n, (1980, 1, 1, 0, 0, 0))
            info.compress_type = how.get('method', zipfile.ZIP_STORED)
            with z.open(info, 'w', force_zip64=how.get('zip64', False)) as f: f.write(data)
    with open(OUT + name, 'wb') as f: f.write(buffer.getvalue())
rezip('deflated.pth', 'bare.pth', method=zipfile.ZIP_DEFLATED)
rezip('streamed.pth', 'bare.pth', method=zipfile.ZIP_DEFLATED, stream=True)
rezip('zip64.pth', 'bare.pth', zip64=True)

# The pickles alone, small zip archives, .npy arrays, a safetensors file, data set files.
import numpy, struct, json
def put(name, data):
    with open('tests/seeds/' + name, 'wb') as f: f.write(data)
for name in ('bare.pth', 'strided.pth', 'protocol4.pt'):
    with zipfile.ZipFile(OUT + name) as z: put('pickle/' + name.split('.')[0], z.read([n for n in z.namelist() if n.endswith('data.pkl')][0]))
storage = b'(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0' + b'0X\3\0\0\0cpuK\4NtQ'
put('pickle/legacy', b'\x80\2}X\1\0\0\0wctorch._utils\n_rebuild_tensor_v2\n(' + storage + b'K\0K\2K\2\x86K\1K\2\x86\x89)tRs.')
put('pickle/values', pickle.dumps({'a': [1, -2, 2**40, 2**80, 1.5, None, True, ('x', b'y')]}, 2))
for name, how in (('stored', zipfile.ZIP_STORED), ('deflated', zipfile.ZIP_DEFLATED)):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', how) as z:
        for n in ('a/b', 'c'): z.writestr(zipfile.ZipInfo(n, (1980, 1, 1, 0, 0, 0)), b'hello hello hello ' * 3, how)
    put('zipfile/' + name, buffer.getvalue())

for name, array in (('f4', numpy.arange(6, dtype='<f4').reshape(2, 3)), ('scalar', numpy.array(5)), ('bool', numpy.array([True]))):
    buffer = io.BytesIO(); numpy.save(buffer, array); put('npy/' + name, buffer.getvalue())
header = json.dumps({'__metadata__': {'arch': 'x'}, 'a': {'dtype': 'F32', 'shape': [1, 2], 'data_offsets': [0, 8]}, 'b': {'dtype': 'U8', 'shape': [3], 'data_offsets': [8, 11]}}).encode()
put('weights/two.safetensors', struct.pack('<Q', len(header)) + header + bytes(range(11)))
put('dataset/labels', b'\0' + bytes([0, 0, 8, 1, 0, 0, 0, 4, 1, 2, 3, 9]))
put('dataset/images', b'\1' + bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 3]) + bytes(12))
