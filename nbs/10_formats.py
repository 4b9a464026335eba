# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Formats
#
# > What a sound file really is: which format its first bytes show, where the sound in it begins and ends, and who can decode it.
#
# A name is a claim, and so is a header. At the end of this chapter you can tell a format by its content, and see how much sound a file holds behind what its header counts.

# %%
#| default_exp audio.formats

# %%
#| export
import io, os, re, select, shlex, shutil, struct, subprocess, tempfile, time
from contextlib import suppress
from functools import cache
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Iterator
import numpy as np
from logocentric.core import LogocentricError
from fastcore.basics import patch

# %%
import soundfile as sf
from fastcore.test import test_eq, test_fail

# %% [markdown]
# A sound to work with: a second of a rising tone.

# %%
rate = 16_000
tone = .5*np.sin(2*np.pi*(200 + 200*np.arange(rate)/rate)*np.arange(rate)/rate)
folder = Path(tempfile.mkdtemp())
for suffix in 'wav aiff au flac ogg mp3 caf w64 rf64'.split(): sf.write(folder/f'a.{suffix}', tone, rate)


# %% [markdown]
# ## One error
#
# Whatever goes wrong, a caller meets one exception that names the file and the reason, so that a program that describes a folder can print a line and go on.

# %%
#| export
class AudioError(LogocentricError):
    "A sound that cannot be read: which one, and why."
    def __init__(self, path: str | Path, # the file, or a name for a sound in memory
                 reason: str): # what is wrong, and what helps
        super().__init__(str(path), reason)
        self.path, self.reason = str(path), reason


# %%
#| export
@patch
def __str__(self: AudioError): return f'{self.path}: {self.reason}'


# %% [markdown]
# ## Told by its content
#
# Nearly every format begins with its name, or with a mark that nothing else begins with.

# %%
#| export
SIGNATURES = dict(
    WAV=rb'RIF[FX].{4}WAVE', RF64=rb'(RF64|BW64).{4}WAVE', W64=rb'riff\x2e\x91\xcf\x11', AIFF=rb'FORM.{4}AIF[FC]',
    AU=rb'\.snd|dns\.', CAF=rb'caff\x00\x01', FLAC=rb'fLaC', OGG=rb'OggS\x00', VOC=rb'Creative Voice', NIST=rb'NIST_1A',
    AVR=rb'2BIT', PAF=rb' paf|fap ', PVF=rb'PVF1\n', SVX=rb'FORM.{4}(8SVX|16SV)',
    M4A=rb'.{4}ftyp(?!he[ivx]|avi[fs]|mi[af]|ms?f1|jp|crx)', WEBM=rb'\x1aE\xdf\xa3', AAC=rb'\xff[\xf0\xf1\xf8\xf9]',
    WMA=rb'\x30\x26\xb2\x75\x8e\x66\xcf\x11', APE=rb'MAC [\x80-\xff]', WV=rb'wvpk', AMR=rb'#!AMR', DSF=rb'DSD \x1c',
    TTA=rb'TTA1')

# %% [markdown]
# Only MP3 has no name: it is a chain of frames, each with a header of four bytes from which its length follows.

# %%
#| export
_ONE = dict(enumerate([[*range(32, 449, 32)], [32, 48, 56, *range(64, 129, 16), *range(160, 257, 32), 320, 384],
                       [*range(32, 65, 8), 80, 96, 112, 128, *range(160, 257, 32), 320]], 1)) # kbit/s, MPEG 1, by layer
_TWO = [*range(8, 65, 8), *range(80, 161, 16)] # MPEG 2 and 2.5, layers 2 and 3
_LOW = [32, 48, 56, *range(64, 129, 16), *range(144, 193, 16), 224, 256] # layer 1


# %%
#| export
@cache
def _frame_bytes(one: int, two: int) -> int: # the second and third byte of a header
    version, layer, bits, pace = one >> 3 & 3, 4 - (one >> 1 & 3), two >> 4, two >> 2 & 3
    if one < 0xE0 or version == 1 or layer == 4 or not 0 < bits < 15 or pace == 3: return 0
    rate, padding = (44_100, 48_000, 32_000)[pace] >> {3: 0, 2: 1, 0: 2}[version], two >> 1 & 1
    table = _ONE[layer] if version == 3 else _LOW if layer == 1 else _TWO
    if layer == 1: return 4*(12_000*table[bits - 1]//rate + padding)
    return (72_000 if layer == 3 and version != 3 else 144_000)*table[bits - 1]//rate + padding


# %%
#| export
def frame_bytes(header: bytes # four bytes, or more
               ) -> int:      # 0 if this is no header
    "The length of an MPEG audio frame."
    return _frame_bytes(header[1], header[2]) if len(header) > 3 and header[0] == 255 else 0


# %% [markdown]
# At 128 kbit/s and 44.1 kHz a frame has 417 bytes, and now and then 418.

# %%
test_eq([frame_bytes(bytes.fromhex(h)) for h in ('fffb9000', 'fffb9200', 'fffbf000', '00fb9000')], [417, 418, 0, 0])


# %% [markdown]
# One header can be an accident; two in a chain, of the same version, layer and rate, are not. A tag of the kind ID3 may lie in front of anything.

# %%
#| export
def id3_bytes(head: bytes # ten bytes, or more
             ) -> int:    # 0 if there is none
    "The length of a tag in front of the sound."
    if head[:3] != b'ID3' or len(head) < 10: return 0
    return 10 + sum((b & 127) << s for b, s in zip(head[6:], (21, 14, 7, 0)))


# %%
#| export
def _is_mpeg(head: bytes) -> bool: # from the first frame on
    size = frame_bytes(head)
    after = head[size:size + 4]
    alike = frame_bytes(after) > 0 and after[1] | 1 == head[1] | 1 and after[2] & 12 == head[2] & 12
    return size > 0 and (alike or size == len(head))


# %%
#| export
def sound_format(path: str | Path # any file
                ) -> str | None: # e.g. `WAV`, `MP3`, `M4A`; `None` for what is no sound, or cannot be read
    "The format of a sound file by its first bytes, whatever its name says."
    if not os.path.isfile(path): return None
    try:
        with open(path, 'rb') as f:
            tag = id3_bytes(f.read(10))
            f.seek(tag)
            head = f.read(2**12)
    except OSError: return None
    named = next((name for name, mark in SIGNATURES.items() if re.match(mark, head, re.DOTALL)), None)
    return named or ('MP3' if tag or _is_mpeg(head) else None)


# %%
(folder/'a.txt').write_text('RIFFs of great guitarists', encoding='utf-16')
{p.name: sound_format(p) for p in sorted(folder.iterdir())}

# %% [markdown]
# ## Where the sound lies
#
# A header is written before the sound, and is not always put right afterwards. A size may be too small; two files may be laid one behind the other, as in `cat a.mp3 b.mp3`. Decoders believe the first header, and stop
# there. So we look at the file ourselves, without decoding, and say which *parts* it has, each of which a decoder reads to its end.

# %%
#| export
@dataclass(frozen=True)
class Part:
    "A stretch of a file that holds one recording."
    format: str              # as `sound_format` calls it
    start: int               # byte
    stop: int                # byte
    patch: bytes = b''       # what its header should say
    at: int = 0              # bytes from `start`, where it should say so
    counted: float = 1.      # share of the sound that the header counts
    frames: int = 0          # that a header promises, of a format that we ask for more; 0: nothing is promised
    uncounted: bool = False  # an MP3 of which nobody knows the length
    chained: bool = True     # an MP3 whose frames follow each other without a gap
    ended: bool = True       # an Ogg stream whose last page says that it is the last


# %% [markdown]
# A decoder shall see a part as if it were the file. If nobody has counted an MP3, its decoder would guess the length from the size, and stop there, or go on to claim what is not there; one that is told of an endless file
# reads until nothing comes. (It looks for a tag in the last 128 bytes first, so these exist.)

# %%
#| export
ENDLESS = 2**40 # bytes


# %%
#| export
class PartFile(io.RawIOBase):
    "A part of a file as a file of its own, with its header put right."
    def __init__(self, path: str | Path, part: Part):
        self.file, self.part, self.at, self.error = open(path, 'rb'), part, 0, None
        self.size = ENDLESS if part.uncounted else part.stop - part.start

    def seek(self, offset, whence=0):
        self.at = offset + (0, self.at, self.size)[whence]
        return self.at

    def tell(self): return self.at

    def close(self):
        self.file.close()
        super().close()


# %% [markdown]
# What the disk refuses is kept for the caller, since the library in between could not pass it on.

# %%
#| export
@patch
def _content(self: PartFile, size: int) -> bytearray:
    "The next bytes, patched."
    part, at = self.part, self.at
    self.file.seek(part.start + at)
    content = bytearray(self.file.read(max(0, min(size, part.stop - part.start - at))))
    for i in range(max(at, part.at), min(at + len(content), part.at + len(part.patch))):
        content[i - at] = part.patch[i - part.at]
    return content


# %%
#| export
@patch
def readinto(self: PartFile, buffer):
    try: content = bytes(len(buffer)) if self.at >= ENDLESS - 128 else self._content(len(buffer))
    except (OSError, ValueError) as e: content, self.error = b'', e
    buffer[:len(content)] = bytes(content)
    self.at += len(content)
    return len(content)


# %%
whole = (folder/'a.wav').read_bytes()
with PartFile(folder/'a.wav', Part('WAV', 4, 50, b'xy', 2)) as f: test_eq(f.read(), whole[4:6] + b'xy' + whole[8:50])


# %% [markdown]
# ### Chunks
#
# A WAV is a row of chunks, each with a name and a size; the sound is in the chunk `data`. AIFF and CAF are made likewise.

# %%
#| export
CHUNKS = dict(WAV=(12, '<4sI', b'data'), RF64=(12, '<4sI', b'data'), AIFF=(12, '>4sI', b'SSND'),
              CAF=(8, '>4sQ', b'data')) # bytes in front of the chunks, what a chunk begins with, the one of the sound


# %%
#| export
def _data_chunk(f: BinaryIO, part: Part) -> tuple[int, int, str]:
    "Where the sound of a part begins, how many bytes its header counts, and how it writes numbers; 0, 0 if nowhere."
    before, layout, name = CHUNKS[part.format]
    f.seek(part.start)
    if f.read(4) == b'RIFX': layout = '>4sI'
    at, size = part.start + before, struct.calcsize(layout)
    for _ in range(1000):
        if at + size > part.stop: break
        f.seek(at)
        head = f.read(size)
        found, length = struct.unpack(layout, head)
        if found == name: return at + size, length, layout[0] + layout[-1]
        at += size + length + (length % 2 if part.format != 'CAF' else 0)
    return 0, 0, layout[0] + layout[-1]


# %% [markdown]
# Behind the sound comes the end of the file, a tag, or another chunk: four letters, and a size that fits. Anything else is sound that nobody counted. Up to four kilobytes are left alone: programs fill up sectors.

# %%
#| export
PADDING = 4096 # bytes behind the sound that may be anything
TAGS = rb'TAG|ID3|APETAGEX|LYRICS' # of other programs, at the end of a file


# %%
#| export
def _is_chunk(f: BinaryIO, at: int, part: Part) -> bool:
    f.seek(at)
    head, layout = f.read(12), CHUNKS[part.format][1]
    if re.match(TAGS, head): return True
    if len(head) < struct.calcsize(layout) or not re.match(rb'[\w .\-]{4}', head): return False
    return any(at + struct.unpack_from(order + layout[1:], head)[1] <= part.stop for order in '<>')


# %%
#| export
def _is_counted(f: BinaryIO, end: int, part: Part) -> bool:
    "Whether the sound of a part ends where its header says."
    return end + PADDING >= part.stop or any(_is_chunk(f, at, part) for at in (end, end + 1))


# %% [markdown]
# A size that is too small is put right: it reaches to the end of the part.

# %%
#| export
def _recounted(part: Part, begin: int, counted: int, at: int, code: str, extra: int = 0) -> Part:
    "A part whose header counts all of its sound: a size at byte `at`, `extra` bytes larger than the sound."
    real = part.stop - begin
    return Part(part.format, part.start, part.stop, struct.pack(code, real + extra), at - part.start, counted/real)


# %%
#| export
def _chunk_part(f: BinaryIO, part: Part) -> Part:
    begin, size, code = _data_chunk(f, part)
    if not begin or part.format == 'RF64' and size != 2**32 - 1: return part
    at = begin - struct.calcsize(code)
    if part.format == 'RF64': # its sizes are elsewhere, in more bytes
        at, code = part.start + 28, '<Q'
        f.seek(at)
        size = struct.unpack(code, f.read(8))[0]
    if size < part.stop - begin and not _is_counted(f, begin + size, part):
        return _recounted(part, begin, size, at, code)
    return part


# %% [markdown]
# The header of an AU says where the sound begins, and its size; nothing follows.

# %%
#| export
def _au_part(f: BinaryIO, part: Part) -> Part:
    f.seek(part.start)
    head = f.read(12)
    order = '>' if head[:1] == b'.' else '<'
    begin, size = struct.unpack(f'{order}II', head[4:]) if len(head) == 12 else (0, 0)
    if size + PADDING >= part.stop - part.start - begin: return part
    return _recounted(part, part.start + begin, size, part.start + 8, f'{order}I')


# %% [markdown]
# ### Streams
#
# FLAC counts its samples in 36 bits of its header; zero means that it does not know, and then a decoder reads all there is. We always say zero, and compare.

# %%
#| export
def _flac_part(f: BinaryIO, part: Part) -> Part:
    f.seek(part.start + 21)
    bits = f.read(5)
    if len(bits) < 5: return part
    frames = int.from_bytes(bits, 'big') & (2**36 - 1)
    return Part('FLAC', part.start, part.stop, bytes([bits[0] & 0xF0, 0, 0, 0, 0]), 21, frames=frames)


# %% [markdown]
# Beginnings of further recordings are looked for in the whole file, a megabyte at a time.

# %%
#| export
def _find_all(f: BinaryIO, pattern: bytes, start: int, stop: int) -> Iterator[int]:
    "Where a pattern of at most 64 bytes is found."
    size = 2**20
    for at in range(start, stop, size):
        f.seek(at)
        block = f.read(min(size + 64, stop - at))
        yield from (at + m.start() for m in re.finditer(pattern, block, re.DOTALL) if m.start() < size)


# %% [markdown]
# In an Ogg file, a recording begins with one page for each of its streams, marked as a first page.

# %%
#| export
def _page_bytes(f: BinaryIO, at: int) -> int:
    f.seek(at + 26)
    count = f.read(1)
    return 27 + sum(count) + sum(f.read(sum(count)))


# %%
#| export
def _ogg_starts(f: BinaryIO, start: int, stop: int) -> list[int]:
    "Where the recordings of an Ogg file begin."
    found, last = [], -1
    for at in _find_all(f, rb'OggS\x00[\x02\x06]', start, stop):
        if at != last: found.append(at)
        last = at + _page_bytes(f, at)
    return found


# %% [markdown]
# And its last page says that it is the last, unless the file was cut short.

# %%
#| export
def _ogg_part(f: BinaryIO, part: Part) -> Part:
    begin = max(part.start, part.stop - 2**16)
    f.seek(begin)
    tail = f.read(part.stop - begin)
    last = tail.rfind(b'OggS\x00')
    return replace(part, ended=last >= 0 and bool(tail[last + 5:last + 6] > b'\x03'))


# %% [markdown]
# ### MP3
#
# Some encoders begin with a frame without sound, in which they write `Xing` or `Info`, and how many frames follow.

# %%
#| export
def _count_tag(f: BinaryIO, at: int) -> int | None: # a byte where a frame may begin
    "How many frames an MP3's first frame promises; `None` if it promises nothing."
    f.seek(at)
    frame = f.read(64)
    found = re.match(rb'.{13,38}?(?:(?:Xing|Info)(....)(....)|VBRI.{10}(....))', frame, re.DOTALL)
    if not frame_bytes(frame) or not found: return None
    flags, frames, old = found.groups()
    return int.from_bytes(old if flags is None else frames, 'big') if flags is None or flags[3] & 1 else None


# %%
test_eq([_count_tag(open(folder/f'a.{suffix}', 'rb'), 0) for suffix in ('mp3', 'wav')], [30, None])


# %% [markdown]
# The frames themselves can be counted by going from header to header, which costs a hundredth of decoding them.

# %%
#| export
def _kind(header: bytes) -> tuple: # four bytes
    "Version and layer, rate, and whether it is mono: a decoder cannot go on where these change."
    return header[1] & 0xFE, header[2] & 12, header[3] >> 6 == 3


# %%
#| export
def _walk_frames(f: BinaryIO, at: int, stop: int, most: float = float('inf')) -> tuple[int, int]:
    "How many whole frames of one kind follow each other, and the byte behind them."
    count, kind = 0, None
    while count < most:
        f.seek(at)
        size = frame_bytes(header := f.read(4))
        if not size or at + size > stop or kind not in (None, _kind(header)): break
        at, count, kind = at + size, count + 1, _kind(header)
    return count, at


# %% [markdown]
# Tags at the end are no sound: a decoder that looks for frames there would complain of damage.

# %%
#| export
def _without_tags(f: BinaryIO, start: int, stop: int) -> int:
    "The end of the sound in front of tags at the end of a file."
    for size, mark in ((128, b'TAG'), (32, b'APETAGEX')):
        f.seek(max(start, stop - size))
        if not (tail := f.read(size)).startswith(mark): continue
        more = int.from_bytes(tail[12:16], 'little') if size == 32 else size
        stop = max(start, stop - more)
    return stop


# %%
#| export
def _next_frame(f: BinaryIO, at: int, stop: int) -> int | None:
    "Where the next frame begins: one that another follows."
    f.seek(at)
    at += id3_bytes(f.read(10))
    for here in range(at, stop, 4096):
        f.seek(here)
        block = f.read(min(8192, stop - here))
        places = (m.start() for m in re.finditer(rb'\xff[\xe2-\xff]', block[:4097]))
        if (first := next((i for i in places if _is_mpeg(block[i:i + 4096])), None)) is not None: return here + first


# %% [markdown]
# Where nobody counted, we go from chain to chain. A decoder finds its way over a small gap by itself; behind a large one begins another part, as where the kind changes.

# %%
#| export
GAP = 1000 # bytes between frames that a decoder searches
MAX_PARTS = 1000 # of a file; what lies behind is left to the last one


# %%
#| export
def _uncounted_parts(f: BinaryIO, at: int, stop: int) -> list[Part]:
    "The chains of frames from a byte on."
    parts, last = [], None
    while len(parts) < MAX_PARTS and (start := _next_frame(f, at, stop)) is not None:
        f.seek(start)
        kind, (count, at) = _kind(f.read(4)), _walk_frames(f, start, stop)
        if parts and kind == last and start - parts[-1].stop <= GAP:
            parts[-1] = replace(parts[-1], stop=at, chained=False)
        elif count > 2 or not parts: # two can be an accident
            parts.append(Part('MP3', start, at, uncounted=True))
            last = kind
    return parts


# %% [markdown]
# So an MP3 falls into parts at every first frame with a count, and where more frames follow than were promised.

# %%
#| export
def _mp3_parts(f: BinaryIO, start: int, stop: int, first: int) -> list[Part]: # where the first frame begins
    "An MP3 from one count to the next."
    sound = _without_tags(f, start, stop)
    if not (promised := _count_tag(f, first)):
        return _uncounted_parts(f, first, sound) or [Part('MP3', start, sound, uncounted=True, chained=False)]
    count, end = _walk_frames(f, first, stop, promised + 1)
    rest = _uncounted_parts(f, end, sound) if count > promised and sound - end > PADDING else []
    whole = stop if count <= promised or sound - end <= PADDING else end
    return [Part('MP3', start, rest[0].start if rest else whole, chained=count > promised), *rest]


# %%
#| export
def _mp3_starts(f: BinaryIO, start: int, stop: int) -> list[int]:
    "Where frames with a count begin, behind the first frame."
    found = []
    for tag in _find_all(f, rb'Xing\x00\x00|Info\x00\x00|VBRI', start + 64, stop):
        places = [tag - n for n in (36, 21, 13, 38, 23, 15) if _count_tag(f, tag - n) is not None]
        found += places[:1]
    return found


# %% [markdown]
# ### All parts
#
# Some headers say how long the whole file is; if another begins there, two were laid one behind the other. In a FLAC or a CAF we look for the next beginning.

# %%
#| export
def _declared(head: bytes, name: str) -> int: # the first 28 bytes
    "How many bytes a file says it has."
    if name == 'AU': return sum(struct.unpack('>II' if head[:1] == b'.' else '<II', head[4:12]))
    if name == 'W64': return -(-int.from_bytes(head[16:24], 'little')//8)*8
    if name == 'RF64': return 8 + int.from_bytes(head[20:28], 'little')
    return 8 + int.from_bytes(head[4:8], 'little' if head[:4] == b'RIFF' else 'big')


# %%
#| export
def _declared_starts(f: BinaryIO, name: str, start: int, stop: int) -> list[int]:
    "Where files begin that lie one behind the other, if each says how long it is."
    found, begins = [start], lambda at: (f.seek(at), re.match(SIGNATURES[name], f.read(28), re.DOTALL))[1]
    while len(found) < MAX_PARTS:
        f.seek(found[-1])
        if len(head := f.read(28)) < 28: break
        end = found[-1] + max(28, _declared(head, name))
        if end >= stop or not (nexts := [at for at in (end, end + 1) if begins(at)]): break
        found.append(nexts[0])
    return found


# %%
#| export
MARKS = dict(FLAC=rb'fLaC[\x00\x80]\x00\x00\x22', CAF=rb'caff\x00\x01\x00\x00desc')


# %%
#| export
def _starts(f: BinaryIO, name: str, start: int, stop: int) -> list[int]:
    "Where the recordings in a file begin."
    if name == 'OGG': found = _ogg_starts(f, start, stop)
    elif name in MARKS: found = list(_find_all(f, MARKS[name], start, stop))
    elif name in ('WAV', 'RF64', 'W64', 'AIFF', 'AU'): found = _declared_starts(f, name, start, stop)
    else: found = []
    return sorted({start, *found})[:MAX_PARTS]


# %%
#| export
def _part_of(f: BinaryIO, part: Part) -> Part:
    if part.format in CHUNKS: return _chunk_part(f, part)
    return {'FLAC': _flac_part, 'AU': _au_part, 'OGG': _ogg_part}.get(part.format, lambda f, part: part)(f, part)


# %%
#| export
def find_parts(path: str | Path, # a sound file
               name: str | None  # its format, as `sound_format` calls it
              ) -> list[Part]:
    "The recordings that lie in a file, one behind the other; nothing is decoded."
    stop = os.path.getsize(path)
    with open(path, 'rb') as f:
        tag = id3_bytes(f.read(10))
        if name == 'MP3':
            starts = [0, *_mp3_starts(f, tag, stop)[:MAX_PARTS], stop]
            return [part for a, b in zip(starts, starts[1:]) for part in _mp3_parts(f, a, b, a or tag)]
        starts = [*_starts(f, name, tag, stop), stop]
        return [_part_of(f, Part(name, a, b)) for a, b in zip(starts, starts[1:])]


# %% [markdown]
# What lies between and behind them, but for tags, is no sound that anybody could decode.

# %%
#| export
def bytes_left(path: str | Path, parts: list[Part]) -> int:
    "How many bytes of a file are in none of its parts, and in no tag in front or at the end."
    with open(path, 'rb') as f: stop = _without_tags(f, 0, os.path.getsize(path))
    gaps = sum(b.start - a.stop for a, b in zip(parts, parts[1:]))
    return gaps + max(0, stop - parts[-1].stop)


# %% [markdown]
# A healthy file is one part. Two MP3 files laid one behind the other are two; so are chained Ogg files. And a WAV whose header counts half of it is told to count the rest.

# %%
test_eq([len(find_parts(p, sound_format(p))) for p in folder.glob('a.[!t]*')], [1]*9)
for suffix in ('mp3', 'ogg', 'flac', 'wav'): (folder/f'two.{suffix}').write_bytes(2*(folder/f'a.{suffix}').read_bytes())
(folder/'half.wav').write_bytes(whole[:40] + struct.pack('<I', rate) + whole[44:])
test_eq([len(find_parts(p, sound_format(p))) for p in folder.glob('two.*')], [2]*4)
half, = find_parts(folder/'half.wav', 'WAV')
test_eq(bytes_left(folder/'half.wav', [half]), 0)
test_eq(struct.unpack('<I', half.patch), [2*rate])
half

# %% [markdown]
# ## What others decode
#
# AAC (in m4a and mp4), the audio of WebM, and WMA are decoded by nobody here. Where the program `ffmpeg` is on the path it is asked, and elsewhere the error names the command that helps. It opens a file as the format that
# its first bytes show, and no other; it may read this file and write to us, and nothing else.

# %%
#| export
FFMPEG_FORMATS = dict(M4A='mov', WEBM='matroska', AAC='aac', WMA='asf', APE='ape', WV='wv', AMR='amr', DSF='dsf',
                      TTA='tta', CAF='caf', WAV='wav', W64='w64', AIFF='aiff', OGG='ogg') # as ffmpeg calls them
FFMPEG_ONLY = {'M4A': 'AAC (m4a, mp4)', 'WEBM': 'WebM', 'AAC': 'AAC', 'WMA': 'WMA', 'APE': 'Monkey’s Audio',
               'WV': 'WavPack', 'AMR': 'AMR', 'DSF': 'DSD', 'TTA': 'True Audio'} # that nobody else decodes, in words
FFMPEG_HOURS, FFMPEG_PATIENCE = 24, 60 # h of sound that are read; s that it may take for a block


# %%
#| export
def has_ffmpeg() -> bool:
    "Whether `ffmpeg` is on the path."
    return shutil.which('ffmpeg') is not None


# %%
#| export
def _ffmpeg_command(program: str, path: str | Path, name: str) -> list[str]:
    quiet = ['-nostdin', '-hide_banner', '-loglevel', 'error']
    source = ['-protocol_whitelist', 'file,pipe', '-f', FFMPEG_FORMATS[name], '-i', f'file:{os.path.abspath(path)}']
    only = ['-map', '0:a:0', '-vn', '-sn', '-dn', '-t', str(FFMPEG_HOURS*3600)]
    return [program, *quiet, *source, *only, '-f', 'au', '-c:a', 'pcm_f32be', 'pipe:1']


# %%
#| export
def needs_ffmpeg(path: str | Path, name: str) -> AudioError:
    "The error for a format that only ffmpeg decodes: what is it, and which command helps."
    stem, suffix = os.path.splitext(path)
    better = f'{stem}.wav' if suffix.lower() != '.wav' else f'{stem}.flac'
    return AudioError(path, f'{FFMPEG_ONLY.get(name, f"this kind of {name}")} cannot be decoded here without ffmpeg; '
                            f'install it, or convert the file with: ffmpeg -i {shlex.quote(str(path))} '
                            f'{shlex.quote(better)}')


# %% [markdown]
# It writes an AU, whose header says how the samples that follow are to be read.

# %%
#| export
class FFmpegStream:
    "A sound that ffmpeg decodes, block by block."
    subtype, frames, complaints = 'by ffmpeg', 0, 0
    def __init__(self, path: str | Path, part: Part):
        self.path, self.part, self.format = str(path), part, part.format
        if not (program := shutil.which('ffmpeg')): raise needs_ffmpeg(path, part.format)
        self.log = tempfile.TemporaryFile()
        command = _ffmpeg_command(program, path, part.format)
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.log)
        try: self._read_header()
        except BaseException: self.close(); raise


# %% [markdown]
# One that gives nothing for a minute is stopped.

# %%
#| export
@patch
def _bytes(self: FFmpegStream, size: int) -> bytes:
    "The next bytes; fewer at the end."
    found, pipe, end = bytearray(), self.process.stdout.fileno(), time.monotonic() + FFMPEG_PATIENCE
    while len(found) < size:
        if not select.select([pipe], [], [], max(0, end - time.monotonic()))[0]:
            raise AudioError(self.path, f'ffmpeg gave no sound for {FFMPEG_PATIENCE:g} s, and was stopped')
        if not (more := os.read(pipe, min(2**16, size - len(found)))): break
        found += more
    return bytes(found)


# %%
#| export
@patch
def _said(self: FFmpegStream) -> list[str]:
    "What it wrote about errors."
    self.log.seek(0)
    lines = self.log.read(100_000).decode('utf-8', 'replace').splitlines()
    return [''.join(c for c in line if c.isprintable()) for line in lines if line.strip()]


# %%
#| export
@patch
def _read_header(self: FFmpegStream):
    head = self._bytes(24)
    if len(head) < 24 or head[:4] != b'.snd':
        with suppress(subprocess.TimeoutExpired): self.process.wait(5)
        raise AudioError(self.path, f'ffmpeg cannot decode it: {"; ".join(self._said()[-2:]) or "it gave no sound"}')
    _, begin, _, kind, self.samplerate, self.channels = struct.unpack('>4s5I', head)
    self._bytes(begin - 24)
    if kind != 6 or not 0 < self.channels < 1025: raise AudioError(self.path, 'ffmpeg gave no 32-bit samples')


# %%
#| export
@patch
def block(self: FFmpegStream, frames: int) -> np.ndarray: # (frames, channels)
    "The next frames; none at the end."
    content = self._bytes(4*frames*self.channels)
    whole = np.frombuffer(content, '>f4', len(content)//4).astype(np.float32)
    if len(content) < 4*frames*self.channels: self.complaints = len(self._said())
    return whole[:len(whole)//self.channels*self.channels].reshape(-1, self.channels)


# %%
#| export
@patch
def close(self: FFmpegStream):
    "Stop the program."
    self.process.kill()
    self.process.wait()
    self.process.stdout.close()
    self.log.close()


# %%
#| export
@patch
def __enter__(self: FFmpegStream): return self


# %%
#| export
@patch
def __exit__(self: FFmpegStream, *error): self.close()


# %%
str(needs_ffmpeg('my song.m4a', 'M4A'))

# %%
#| hide
shutil.rmtree(folder)
