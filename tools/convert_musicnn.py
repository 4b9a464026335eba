"""Put the two trained musicnn models into the package: read the published checkpoints, without TensorFlow.

    pip download --no-deps musicnn==0.1.0
    python tools/convert_musicnn.py musicnn-0.1.0-py3-none-any.whl

makes `logocentric/assets/musicnn_msd` and `musicnn_mtt`: weights in float32, configuration, a card with the licence.
A TensorFlow V2 checkpoint is two files. `.data-00000-of-00001` holds all tensors one behind the other; `.index` is a
LevelDB table, here without compression, from the name of a tensor to where it lies: blocks of keys that share their
beginnings, each with a small protocol buffer.
"""
import ast, hashlib, struct, sys, zipfile
from pathlib import Path
import numpy as np, torch
from logocentric.core import LogocentricError, shipped_path
from logocentric.encoder.musicnn import MUSICNN_FRONTEND, MUSICNN_LENGTH, Musicnn, MusicnnConfig

WHEEL = 'f38a4890c648c1ddbb141c5d96d2b0a8cfcd36746002d896989f7b88beb65cfa'  # SHA-256 of the published wheel
MODELS = dict(msd='MSD', mtt='MTT')
MAGIC = bytes.fromhex('57fb808b247547db')          # the last bytes of a LevelDB table


# --- the index: a LevelDB table

def varint(data: bytes, at: int) -> tuple[int, int]: # the number, and where it ends
    "Seven bits a byte, the lowest first; the highest bit says that another byte follows."
    value = shift = 0
    while True:
        value, shift, byte = value | (data[at] & 127) << shift, shift + 7, data[at]
        at += 1
        if byte < 128: return value, at


def entries(table: bytes, offset: int, size: int):
    "Keys and values of a block: each key repeats the first bytes of the one before it."
    if table[offset + size]: raise LogocentricError('the index is compressed: this reads uncompressed ones only')
    block = table[offset:offset + size]
    restarts, = struct.unpack('<I', block[-4:])
    at, key = 0, b''
    while at < size - 4*(restarts + 1):
        shared, at = varint(block, at)
        unshared, at = varint(block, at)
        length, at = varint(block, at)
        key = key[:shared] + block[at:at + unshared]
        yield key, block[at + unshared:at + unshared + length]
        at += unshared + length


def handle(data: bytes, at: int = 0) -> tuple[int, int, int]: # offset, size, and where it ends
    "Where a block lies."
    offset, at = varint(data, at)
    size, at = varint(data, at)
    return offset, size, at


def table_entries(table: bytes):
    "All keys and values of a table: its footer leads to the index block, and that to the others."
    if table[-8:] != MAGIC: raise LogocentricError('no LevelDB table: its last bytes differ')
    _, _, at = handle(table[-48:])  # of the meta-index, which is not needed
    offset, size, _ = handle(table[-48:], at)
    for _, where in entries(table, offset, size): yield from entries(table, *handle(where)[:2])


# --- its values: protocol buffers

def fields(message: bytes) -> list[tuple[int, int | bytes]]: # number of a field, its value
    "The fields of a protocol buffer."
    found, at = [], 0
    while at < len(message):
        tag, at = varint(message, at)
        if tag & 7 == 0: value, at = varint(message, at)
        elif tag & 7 == 2:
            length, at = varint(message, at)
            value, at = message[at:at + length], at + length
        elif tag & 7 == 5: value, at = message[at:at + 4], at + 4
        else: raise LogocentricError(f'a field of wire type {tag & 7}, which such an index does not have')
        found.append((tag >> 3, value))
    return found


def tensor(entry: bytes, data: bytes) -> np.ndarray:
    "The tensor that an entry (1 type, 2 shape, 4 offset, 5 size) describes."
    about = dict(fields(entry))
    if about.get(1) != 1: raise LogocentricError('a tensor that is not float32')
    shape = [dict(fields(dim)).get(1, 0) for number, dim in fields(about.get(2, b'')) if number == 2]
    return np.frombuffer(data, '<f4', about[5]//4, about.get(4, 0)).reshape(shape)


def read_tensors(index: bytes, data: bytes) -> dict[str, np.ndarray]:
    "The tensors of a checkpoint of one data file, by name, but for what the optimiser kept."
    named = {key.decode(): entry for key, entry in table_entries(index) if key}  # the empty key is a header
    return {name: tensor(entry, data) for name, entry in named.items() if 'Adam' not in name and 'power' not in name}


# --- from their names and shapes to ours

def line(theirs: dict, number: int) -> dict: # scale and shift, in double precision until the end
    "A batch norm with fixed statistics."
    gamma, beta, mean, variance = (theirs[numbered('batch_normalization', number) + f'/{n}'].astype(np.float64)
                                   for n in ('gamma', 'beta', 'moving_mean', 'moving_variance'))
    scale = gamma/np.sqrt(variance + 1e-3)
    return dict(scale=scale, shift=beta - mean*scale)


def numbered(name, number): return f'{name}_{number}' if number else name # TensorFlow counts the second as 1


def convolution(theirs, number): # kernel (frames, bands, 1, filters)
    kernel, bias = (theirs[f'{numbered("conv2d", number)}/{n}'] for n in ('kernel', 'bias'))
    return dict(weight=kernel.transpose(3, 2, 0, 1) if number < 5 else kernel[:, :, 0].transpose(2, 1, 0), bias=bias)


def dense(theirs, number): # kernel (in, out)
    kernel, bias = (theirs[f'{numbered("dense", number)}/{n}'] for n in ('kernel', 'bias'))
    return dict(weight=kernel.T, bias=bias)


def our_weights(theirs: dict) -> dict[str, torch.Tensor]:
    "Their tensors under our names: five convolutions on the log-mel, three above them, two dense layers, eleven norms."
    parts = {'input_norm': line(theirs, 0), 'pool_norm': line(theirs, 9), 'dense_norm': line(theirs, 10),
             'dense': dense(theirs, 0), 'head': dense(theirs, 1)}
    for i in range(8):
        place = f'front.{i}' if i < 5 else f'middle.{i - 5}'
        parts |= {f'{place}.conv': convolution(theirs, i), f'{place}.norm': line(theirs, i + 1)}
    return {f'{part}.{n}': torch.tensor(np.ascontiguousarray(w, dtype=np.float32))
            for part, tensors in parts.items() for n, w in tensors.items()}


# --- a card

CARD = """---
license: isc
tags: [audio, music, tagging, musicnn]
---
# musicnn, {title}

A convolutional network of {parameters:,} numbers that rates 50 tags for every three seconds of sound. Load it with
`logocentric.encoder.musicnn.load_musicnn('{name}')`; `logocentric tag song.mp3` uses it.

**Whose it is.** Jordi Pons and Xavier Serra, *musicnn: pre-trained convolutional neural networks for music audio
tagging* (arXiv 1909.06654), version 0.1.0. The weights are theirs. They were converted by `tools/convert_musicnn.py`:
tensors transposed, each batch norm reduced to a scale and a shift, nothing trained, and float32 as they were.

**What it has learned from.** {training}

**What it reached**, by the authors' own record on their test set: ROC AUC {roc:.4f}, PR AUC {pr:.4f}, means over tags.

**What it is not.** It has learned from music alone: about speech, animals or machines its answers mean nothing, and
they are not small. Its shares are not probabilities that were checked against anything: compare one tag over several
sounds rather than tags with each other. Tags that name a people, a sex or a taste are listeners' words.

**Tags.** {labels}.

## Licence (ISC)

{licence}
"""

TRAINING = dict(
    msd="""The Million Song Dataset, about 200,000 excerpts of commercial recordings, with the fifty
commonest tags that users of Last.fm gave to the songs: genres, moods, decades, and opinions. Neither audio nor tags are
here. The tags were published for research; whoever trains on them again asks for Last.fm's terms.""",
    mtt="""MagnaTagATune, some 25,000 excerpts of 29 s from the label Magnatune, with tags that
players of a game agreed on: instruments, voices, tempo, loudness, genres. Its audio is licensed for non-commercial use
(Creative Commons BY-NC-SA); none of it is here. The authors released the weights under the licence below.""")
TITLES = dict(msd='trained on the Million Song Dataset', mtt='trained on MagnaTagATune')


def results(text: str) -> tuple[float, float]: # ROC AUC, PR AUC
    "The two areas in the authors' file of results."
    roc, pr = (float(row.split(':')[1]) for row in text.splitlines() if 'AUC' in row)
    return roc, pr


def card(name, model, result, licence):
    roc, pr = results(result)
    return CARD.format(name=name, title=TITLES[name], training=TRAINING[name], parameters=model.num_parameters(),
                       roc=roc, pr=pr, labels=', '.join(model.config.labels), licence=licence.strip())


# --- the whole

def labels_in(source: str) -> dict[str, list[str]]:
    "The lists of labels in their `configuration.py`, which is not run."
    found = [n for n in ast.parse(source).body if isinstance(n, ast.Assign) and n.targets[0].id.endswith('_LABELS')]
    return {n.targets[0].id.removesuffix('_LABELS').lower(): ast.literal_eval(n.value) for n in found}


def convert(wheel: zipfile.ZipFile, name: str, folder: Path) -> Path:
    "One model of the wheel into a folder."
    read = lambda path: wheel.read(path).decode()
    at = f'musicnn/{MODELS[name]}_musicnn'
    labels = labels_in(read('musicnn/configuration.py'))[name]
    model = Musicnn(MusicnnConfig(id2label=dict(enumerate(labels)), label2id={n: i for i, n in enumerate(labels)},
                                  frontend=MUSICNN_FRONTEND.to_dict(), length=MUSICNN_LENGTH.to_dict()))
    model.load_state_dict(our_weights(read_tensors(wheel.read(f'{at}/.index'),
                                                   wheel.read(f'{at}/.data-00000-of-00001'))))
    model.save_pretrained(folder)
    (folder/'model.safetensors').chmod(0o644)
    text = card(name, model, read(f'{at}/experiment.result'), read('musicnn-0.1.0.dist-info/LICENSE.md'))
    (folder/'README.md').write_text(text, encoding='utf-8')
    return folder


def main(path: str):
    "Convert both models of the published wheel, and no other."
    if hashlib.sha256(Path(path).read_bytes()).hexdigest() != WHEEL:
        raise LogocentricError(f'{path} is not the published musicnn-0.1.0-py3-none-any.whl')
    with zipfile.ZipFile(path) as wheel:
        for name in MODELS: print(convert(wheel, name, shipped_path(f'musicnn_{name}')))


if __name__ == '__main__': main(sys.argv[1])
