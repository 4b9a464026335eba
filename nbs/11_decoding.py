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
# # Decoding
#
# > From any sound file to samples at one rate, whole, in part or in windows, and a clear error for a broken file.
#
# The models take ten seconds at a time, in one channel, at 16 kHz. Files come in every format, rate and length. At the end of this chapter you can read any of them, start in the middle of a concert, stream ten hours
# in bounded memory, and state exactly which seconds were covered.

# %%
#| default_exp audio.decoding

# %%
#| export
import itertools, math, os, re, tempfile, threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Iterable, Iterator, NamedTuple
from logocentric.core import LogocentricError, Settings
from logocentric.audio.formats import FFMPEG_FORMATS, FFMPEG_HOURS, FFMPEG_ONLY, AudioError, FFmpegStream, Part
from logocentric.audio.formats import PADDING, PartFile, bytes_left, find_parts, has_ffmpeg, sound_format
import numpy as np, soundfile as sf, soxr
from fastcore.basics import patch

# %%
import matplotlib.pyplot as plt
from fastcore.test import test_close, test_eq, test_fail
from logocentric.core import plot_style
plot_style()

# %% [markdown]
# ## Three lines
#
# A sound to work with: four seconds in stereo at 44.1 kHz, a string plucked on the left, a glide that rises and grows on the right. It is kept as a lossless file and as an MP3.

# %%
rate = 44_100
t = np.arange(4*rate)/rate
string = .1*sum(np.sin(2*np.pi*220*k*t)/k for k in range(1, 9))*np.exp(-4*(t % 1))
glide = .05*t*np.sin(2*np.pi*(200*t + 400*t**2))
stereo = np.stack([string, glide], axis=1)   # (samples, channels), as files hold them
folder = Path(tempfile.mkdtemp())
sf.write(folder/'a.flac', stereo, rate, 'PCM_24'); sf.write(folder/'a.mp3', stereo, rate)

# %%
fig, axes = plt.subplots(2, 1, figsize=(7, 2), sharex=True)
for ax, channel, name in zip(axes, stereo.T, ('left', 'right')): ax.plot(t, channel, lw=.3); ax.set_ylabel(name)
ax.set_xlabel('time (s)');


# %% [markdown]
# With two good libraries, reading takes three lines. libsndfile, behind soundfile, decodes wav, flac, ogg, opus, mp3 and a dozen others; soxr resamples.

# %%
def naive_load(path):
    samples, rate = sf.read(path, dtype='float32', always_2d=True)
    return soxr.resample(samples.mean(1), rate, 16_000)

naive_load(folder/'a.flac').shape, naive_load(folder/'a.mp3').shape


# %% [markdown]
# What they lack fills this chapter. A file of ten hours does not fit into memory. A part of a file should be the same numbers as that part of the whole, which for an MP3 is not easy. Files are broken in many
# ways, and what they say of themselves is not always so. Whatever goes wrong, a caller meets one exception, `AudioError`, that names the file and the reason.
#
# ## Reading block by block
#
# MP3 frames borrow bits from earlier frames, and a decoder that seeks forgets them. soundfile seeks after *every* read, to the place where it already is. So a file read in blocks is not the file read whole.
#
# The decoder complains of it, too, on the process's standard error, where C prints. That does not help a user there; we catch it, and count.

# %%
#| export
_stderr_lock = threading.RLock()


# %%
#| export
@contextmanager
def _stderr_to(file): # what C code prints on standard error meanwhile
    with _stderr_lock:
        saved = os.dup(2)
        os.dup2(file.fileno(), 2)
        try: yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)


# %%
def in_blocks(f, size=2**12):
    with tempfile.TemporaryFile() as log, _stderr_to(log):
        return np.concatenate([f.read(size, dtype='float32') for _ in range(len(f)//size + 1)])

at_once, _ = sf.read(folder/'a.mp3', dtype='float32')
difference = abs(in_blocks(sf.SoundFile(folder/'a.mp3')) - at_once).max()
assert difference > .1
f'largest difference {difference:.2f}'


# %% [markdown]
# soundfile does not seek in a file that cannot seek. So we say that ours cannot, and seek all the same where we mean to. What is opened is a part of a file, as the chapter before finds it: one recording, with a header
# that was put right.

# %%
#| export
class _Sequential(sf.SoundFile):
    "A part of a file that libsndfile decodes, block by block."
    def __init__(self, path: str | Path, part: Part):
        self.path, self.part, self.complaints = str(path), part, 0
        self.log, self.content = tempfile.TemporaryFile(buffering=0), PartFile(path, part)
        with _stderr_to(self.log): super().__init__(self.content)

    def seekable(self): return False


# %%
#| export
DAMAGE_PATTERN = re.compile(rb'illegal|resync|skipped|error|corrupt|lost sync', re.I) # said of a damaged frame


# %%
#| export
@patch
def _count_complaints(self: _Sequential):
    "Count what the decoder wrote about damage, and forget it."
    log = self.log.fileno()
    if not os.lseek(log, 0, os.SEEK_CUR): return
    os.lseek(log, 0, os.SEEK_SET)
    self.complaints += len(DAMAGE_PATTERN.findall(os.read(log, 2**20)))
    os.ftruncate(log, 0)
    os.lseek(log, 0, os.SEEK_SET)


# %%
#| export
@patch
def block(self: _Sequential, frames: int) -> np.ndarray: # (frames, channels)
    "The next frames; none at the end."
    with _stderr_to(self.log): found = self.read(frames, dtype='float32', always_2d=True)
    self._count_complaints()
    if self.content.error: raise AudioError(self.path, f'cannot be read: {self.content.error}')
    return found


# %%
#| export
@patch
def close(self: _Sequential):
    sf.SoundFile.close(self)
    self.content.close(); self.log.close()


# %%
whole, = find_parts(folder/'a.mp3', 'MP3')
with _Sequential(folder/'a.mp3', whole) as f:
    test_eq(np.concatenate([f.block(2**12) for _ in range(44)]), at_once)


# %% [markdown]
# ## Opening
#
# What can be seen from outside is looked at first.

# %%
#| export
def _refuse(path: str):
    "Raise an error for what is no sound file, as far as can be seen from outside."
    if not os.path.exists(path): raise AudioError(path, 'no such file')
    if not os.path.isfile(path): raise AudioError(path, 'is not a file')
    if not os.access(path, os.R_OK): raise AudioError(path, 'may not be read by this user')
    if os.path.getsize(path) == 0: raise AudioError(path, 'the file is empty')


# %%
#| export
def _parts(path: str | Path) -> list[Part]:
    "The recordings that lie in a file."
    path = os.fspath(path)
    _refuse(path)
    try: return find_parts(path, sound_format(path))
    except OSError as e: raise AudioError(path, f'cannot be read: {e}') from e


# %% [markdown]
# Content decides who decodes: libsndfile what it can, `ffmpeg` the rest, if it is there.

# %%
#| export
HEADER_ERRORS = {3: 'truncated or damaged: its header makes no sense', # libsndfile's codes
                 4: 'its encoding cannot be decoded here'}


# %%
#| export
def _open_part(path: str | Path, part: Part) -> _Sequential | FFmpegStream:
    if part.format in FFMPEG_ONLY: return FFmpegStream(path, part)
    try: return _Sequential(path, part)
    except OSError as e: raise AudioError(path, f'cannot be read: {e}') from e
    except (sf.SoundFileError, TypeError) as e:
        code = getattr(e, 'code', 0)
        if code == 4 or code != 3 and has_ffmpeg():
            if part.format in FFMPEG_FORMATS and part.start == 0: return FFmpegStream(path, part)
        reason = 'not a sound file, or of a kind that cannot be decoded here'
        raise AudioError(path, HEADER_ERRORS.get(code, reason)) from e


# %% [markdown]
# Recorders work at some thousands of samples a second, or at some hundred thousands. A header that says 1 Hz would make a megabyte of it last for days.

# %%
#| export
RATES = 1_000, 768_000 # Hz, that recorders use


# %%
#| export
def _check_rate(rate: float, name: str | Path):
    try: ok = RATES[0] <= rate <= RATES[1]
    except (TypeError, ValueError): ok = False
    if not ok: raise AudioError(name, f'has a sample rate of {rate} Hz; recorders use {RATES[0]:,} to {RATES[1]:,} Hz')


# %% [markdown]
# ## What a header promises
#
# A half-downloaded file looks whole until its end. libsndfile knows better and says so in its log, in lines such as `data : 256000 (should be 127956)`. We refuse a file that lacks more than a tenth of a second of what
# its header promises. (Sizes of 2 GiB and more are the mark of programs that wrote to a pipe and promised nothing. An MP3 without a count promises nothing either.)

# %%
#| export
def _promised(f: _Sequential | FFmpegStream) -> float:
    "Frames that the header promises; 0 if it promises nothing."
    if f.format == 'FLAC' and f.part.patch: return f.part.frames
    if f.part.uncounted or f.part.patch or not isinstance(f, _Sequential): return 0
    pattern = r'^ *(?:data|SSND|Data Size|Riff size|riff) *: *(\d+) *\(should be (\d+)\)'
    sizes = [(int(said), int(real)) for said, real in re.findall(pattern, f.extra_info, re.M)]
    return f.frames*max((said/real for said, real in sizes if 0 < real < said < 0x7ffff000), default=1)


# %%
#| export
LENGTH_TOLERANCE = .1  # s: a file may lack this much of what its header promises


# %%
#| export
def _check_whole(f: _Sequential | FFmpegStream, frames: int):
    promised = _promised(f)
    if frames + LENGTH_TOLERANCE*f.samplerate < promised:
        raise AudioError(f.path, f'truncated or damaged: the header promises {promised/f.samplerate:.1f} s, '
                                 f'and only {frames/f.samplerate:.1f} s can be decoded')


# %% [markdown]
# Where samples have a fixed size, the size of the file says how many there are; elsewhere only decoding does.

# %%
#| export
LINEAR = 'PCM_U8 PCM_S8 PCM_16 PCM_24 PCM_32 FLOAT DOUBLE ULAW ALAW'.split()


# %%
#| export
def _opened(path: str | Path, part: Part) -> _Sequential | FFmpegStream:
    "A part, ready to be read."
    f = _open_part(path, part)
    try:
        _check_rate(f.samplerate, path)
        if f.subtype in LINEAR and f.format != 'FLAC': _check_whole(f, f.frames)
        return f
    except BaseException: f.close(); raise


# %% [markdown]
# ## What has been read
#
# What is said of a sound is what was decoded of it. It is written down while the sound is read, with what a listener should know.

# %%
#| export
@dataclass
class Decoded:
    "What decoding a sound found out; filled while it is read."
    seconds: float = 0.                             # that were decoded
    notes: list[str] = field(default_factory=list)  # sentences a listener should read: what is missing, odd or guessed
    sample_rate: int = 0                            # Hz
    channels: int = 0
    format: str = ''                                # e.g. `WAV PCM_16`
    complaints: int = 0                             # of the decoder, about damage


# %% [markdown]
# Samples that are not numbers, or that no recording holds, are refused here, once, before they can turn a log-mel into NaNs. Full scale is ±1. Peaks above it happen, but a hundred times as much is a number of another
# kind, such as a 16-bit integer that nobody divided.

# %%
#| export
MAX_AMPLITUDE = 100. # 40 dB above full scale


# %%
#| export
def _check_samples(samples: np.ndarray, name: str | Path):
    peak = float(np.abs(samples).max()) if samples.size else 0.
    if not math.isfinite(peak): raise AudioError(name, 'holds samples that are NaN or infinite')
    if peak > MAX_AMPLITUDE:
        raise AudioError(name, f'holds samples of {peak:.3g}, absurdly large where full scale is 1; '
                               'if they are integers, divide them by their full scale (32768 for 16 bits)')


# %% [markdown]
# A part is read forward to its end, however long its header says it is. Blocks have some seconds, and fewer frames where there are many channels. (FLAC's decoder stumbles over what lies behind the last frame. So the frames
# that were promised are read exactly, and what follows, if it can be.)

# %%
#| export
def _blocks_of(f: _Sequential | FFmpegStream, most: float = math.inf) -> Iterator[np.ndarray]: # (frames, channels)
    "Blocks of an open part to its end, or to so many frames."
    at, promised, size = 0, f.part.frames, max(1, min(2**16, 2**22//f.channels))
    while at < most:
        end = promised if at < promised else math.inf
        try: block = f.block(int(min(size, most - at, end - at)))
        except sf.SoundFileError as e:
            if promised and at >= promised: return
            raise AudioError(f.path, 'truncated or damaged: the decoder gave up before the end') from e
        if not len(block): return
        _check_samples(block, f.path)
        at += len(block)
        yield block


# %% [markdown]
# Afterwards there may be something to say.

# %%
#| export
BY_FFMPEG, COMPLAINED = 'it was decoded by ffmpeg', 'the decoder complained of damage'


# %%
#| export
def _part_notes(f: _Sequential | FFmpegStream, seconds: float) -> Iterator[str]:
    "What a listener should know of a part that was read."
    counted = f.part.frames/f.samplerate if f.part.frames else f.part.counted*seconds
    if counted + LENGTH_TOLERANCE < seconds:
        yield f'its header counts {counted:.1f} s; {seconds - counted:.1f} s more lie behind, and were decoded too'
    if not f.part.ended: yield 'its last page is not marked as the last: it may have been cut short'
    if (left := _bytes_behind(f)) > MANY_BYTES: yield f'{left:,} bytes behind {seconds:.1f} s could not be decoded'
    if f.complaints: yield f'{COMPLAINED} {f.complaints} times: moments may be missing'
    if isinstance(f, FFmpegStream): yield BY_FFMPEG
    if isinstance(f, FFmpegStream) and seconds > 3600*FFMPEG_HOURS - 1: yield f'after {FFMPEG_HOURS} h it was left'


# %% [markdown]
# libsndfile stops where it finds no more; behind that may be a lot.

# %%
#| export
MANY_BYTES = 2**16 # that a listener should know of, if they could not be decoded


# %%
#| export
def _bytes_behind(f: _Sequential | FFmpegStream) -> int:
    "How many bytes of a compressed part the decoder did not look at."
    part = f.part
    if part.format not in ('FLAC', 'OGG', 'MP3') or not isinstance(f, _Sequential): return 0
    return max(0, part.stop - part.start - f.content.at)


# %%
#| export
def _read_part(path: str | Path, part: Part, found: Decoded) -> Iterator[tuple[int, np.ndarray]]:
    "Blocks of a part, each with its rate."
    before, at = found.seconds, 0
    with _opened(path, part) as f:
        if not before:
            found.sample_rate, found.channels, found.format = f.samplerate, f.channels, f'{f.format} {f.subtype}'
        for block in _blocks_of(f):
            at += len(block)
            found.seconds = before + at/f.samplerate
            yield f.samplerate, block
        _check_whole(f, at)
        found.complaints += f.complaints
        found.notes += _part_notes(f, at/f.samplerate)


# %% [markdown]
# ### Channels
#
# Channels are averaged, never laid one behind the other. If one is the other upside down, as behind a cable that was wired the wrong way round, nothing is left. The mean is what the models are given, always, so that
# a sound does not change because of what comes later in the file; but if it holds less than a hundredth of the channels' power, that is said. (The mean of independent channels holds half of it, or a sixth of six.)

# %%
#| export
CANCEL_SHARE = .01 # of the channels' mean power: channels whose mean holds less cancel each other


# %%
#| export
def _mono(samples: np.ndarray # (samples, channels)
         ) -> np.ndarray: # (samples,)
    return samples.mean(axis=1, dtype=np.float32)


# %%
#| export
class _Power:
    "The power of channels, and of their mean, summed up block by block."
    def __init__(self): self.mean = self.channels = 0.

    def add(self, samples: np.ndarray): # (samples, channels)
        if samples.shape[1] == 1: return
        mono = _mono(samples)
        self.mean += float(np.vdot(mono, mono))
        self.channels += float(np.vdot(samples, samples))/samples.shape[1]


# %%
#| export
@patch
def notes(self: _Power) -> list[str]:
    share = self.mean/self.channels if self.channels else 1.
    if share >= CANCEL_SHARE: return []
    return [f'its channels cancel: their mean, which is what was heard, holds {share:.2g} of their power; '
            'to hear one of them, make a file of that channel alone']


# %%
power = _Power()
power.add(np.float32(stereo)); test_eq(power.notes(), [])
opposite = _Power()
opposite.add(np.stack([glide, -.99*glide], 1))
opposite.notes()


# %% [markdown]
# ### All of a file
#
# Everything that reads a file to its end, the doctor included, reads it here. What cannot be decoded behind the first recording is named.

# %%
#| export
def _read_parts(path: str | Path, parts: list[Part], found: Decoded) -> Iterator[tuple[int, np.ndarray]]:
    "Blocks of all parts that can be decoded, each with its rate."
    for n, part in enumerate(parts):
        before = found.seconds
        try: yield from _read_part(path, part, found)
        except AudioError as e:
            if not before: raise
            found.notes.append(f'{part.stop - part.start:,} bytes behind {before:.1f} s were not all decoded: {e.reason}')


# %%
#| export
def read_blocks(path: str | Path, # a sound file
                found: Decoded | None = None # filled while the file is read
               ) -> Iterator[tuple[int, np.ndarray]]: # Hz, and (frames, channels) float32 at that rate
    "All that can be decoded of a file, in order, in blocks, as it was recorded."
    found, parts, power = Decoded() if found is None else found, _parts(path), _Power()
    for rate, block in _read_parts(path, parts, found):
        power.add(block)
        yield rate, block
    if not found.seconds: raise AudioError(path, 'the file holds no samples')
    if len(parts) > 1: found.notes.insert(0, f'{len(parts)} pieces of sound lie one behind the other in this file')
    if (left := bytes_left(path, parts)) > PADDING: found.notes.append(f'{left:,} bytes of the file are no sound')
    found.notes += power.notes()


# %%
(folder/'two.mp3').write_bytes(2*(folder/'a.mp3').read_bytes())
sf.write(folder/'opposite.wav', np.stack([glide, -glide], 1), rate)
found = Decoded()
for _ in read_blocks(folder/'two.mp3', found): pass
test_close(found.seconds, 8)
found


# %%
#| export
@dataclass(frozen=True)
class AudioInfo:
    "What a sound file holds."
    duration: float   # s that can be decoded
    sample_rate: int  # Hz
    channels: int     # number of channels
    format: str       # e.g. `WAV PCM_16`


# %% [markdown]
# Its length is that of all that can be decoded. Where samples have a fixed size, that is known at once.

# %%
#| export
def audio_info(path: str | Path) -> AudioInfo: # a sound file
    "Length, rate, channels and format of a sound file; `AudioError` if it is cut short."
    found, parts = Decoded(), _parts(path)
    if len(parts) == 1 and parts[0].format not in FFMPEG_ONLY:
        with _opened(path, parts[0]) as f:
            if f.subtype in LINEAR and f.format != 'FLAC' and f.frames:
                return AudioInfo(f.frames/f.samplerate, f.samplerate, f.channels, f'{f.format} {f.subtype}')
    for _ in read_blocks(path, found): pass
    return AudioInfo(found.seconds, found.sample_rate, found.channels, found.format)


# %%
test_close([audio_info(folder/name).duration for name in ('a.flac', 'a.mp3')], [4, 4], eps=1e-9)
audio_info(folder/'a.mp3')

# %% [markdown]
# ## Samples: mono, at our rate
#
# soxr resamples a stream piece by piece, without seams.

# %%
#| export
def _resample(pieces: Iterable[np.ndarray], rate: int, sample_rate: int) -> Iterator[np.ndarray]:
    "Mono pieces at `rate` Hz to pieces at `sample_rate` Hz."
    if rate == sample_rate: yield from pieces; return
    stream = soxr.ResampleStream(rate, sample_rate, 1, dtype='float32')
    for piece in pieces: yield stream.resample_chunk(piece)
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


# %%
x = np.random.default_rng(0).standard_normal(44_100).astype(np.float32)
test_close(np.concatenate(list(_resample(np.split(x, 7), 44_100, 16_000))), soxr.resample(x, 44_100, 16_000), eps=1e-6)

# %%
#| export
def _resampled(path: str | Path, sample_rate: int, found: Decoded) -> Iterator[np.ndarray]:
    "Mono pieces of a whole file at one rate, whatever rates its recordings have."
    for rate, blocks in itertools.groupby(read_blocks(path, found), key=lambda pair: pair[0]):
        yield from _resample((_mono(block) for _, block in blocks), rate, sample_rate)


# %% [markdown]
# ### A part of a long file
#
# To hear second 3,000 of a concert, seek there. Two subtleties. The resampling filter needs a little of what comes before and after, and an MP3 frame borrows bits from earlier frames: so we start half a second early.
# And the grid of output samples must stay in step with that of the whole file: both grids meet every `rate/gcd` input frames, so we start at such a meeting point and skip what was read too much. Then a part is the
# same numbers as the whole, cut.
#
# Not every decoder can seek, and not every file: where it is damaged, or its encoding is not of those that seek to the sample, we read forward to the place.

# %%
#| export
CONTEXT_SECONDS = .5  # s of context on either side of a part


# %%
#| export
def _part(start: float, duration: float | None, rate: int, sample_rate: int):
    "First input frame, number of input frames, output samples to skip, output samples to keep."
    step_in, step_out = rate//math.gcd(rate, sample_rate), sample_rate//math.gcd(rate, sample_rate)
    steps = max(0, math.floor((start - CONTEXT_SECONDS)*rate/step_in))
    skip = round(start*sample_rate) - steps*step_out
    if duration is None: return steps*step_in, None, skip, None
    keep = round((start + duration)*sample_rate) - round(start*sample_rate)
    return steps*step_in, math.ceil((start + duration + CONTEXT_SECONDS)*rate) - steps*step_in, skip, keep


# %%
#| export
def _sought(path: str | Path, first: Callable[[int], int]) -> _Sequential | None: # frame to go to, by the rate
    "A file, opened at a frame; `None` where it has to be read from its beginning."
    part, *others = _parts(path)
    if others or part.format in FFMPEG_ONLY or not (part.chained and part.ended): return None
    f = _opened(path, part)
    try:
        if f.subtype in LINEAR or f.format in ('FLAC', 'OGG', 'MP3'):
            with _stderr_to(f.log): f.seek(min(first(f.samplerate), f.frames))
            return f
    except sf.SoundFileError: pass
    f.close()


# %%
#| export
def _from_here(f: _Sequential, first: int, count: int | None, found: Decoded) -> Iterator[np.ndarray]:
    "Mono pieces of an open file, which is at frame `first`; `count` frames, or all."
    at, stop = first, math.inf if count is None else first + count
    with f:
        for block in _blocks_of(f, stop - first):
            at += len(block)
            found.seconds = (at - first)/f.samplerate
            yield _mono(block)
        if first < at < stop: _check_whole(f, at)


# %%
#| export
def _pieces(path, start, duration, sample_rate, found) -> tuple[Iterator[np.ndarray], int, int | None]:
    "Mono pieces that hold a part of a file, how many samples to skip of them, and how many to keep."
    f = _sought(path, lambda rate: _part(start, duration, rate, sample_rate)[0]) if start > CONTEXT_SECONDS else None
    if f is None:
        skip = round(start*sample_rate)
        keep = None if duration is None else round((start + duration)*sample_rate) - skip
        return _resampled(path, sample_rate, found), skip, keep
    first, count, skip, keep = _part(start, duration, f.samplerate, sample_rate)
    return _resample(_from_here(f, min(first, f.frames), count, found), f.samplerate, sample_rate), skip, keep


# %%
#| export
def _blocks(pieces: Iterable[np.ndarray], skip: int, keep: int | None, size: int) -> Iterator[np.ndarray]:
    "Pieces without the first `skip` samples and what follows `keep`, as blocks of `size` samples."
    held, left = np.zeros(0, np.float32), math.inf if keep is None else keep
    for piece in pieces:
        piece, skip = piece[skip:], max(0, skip - len(piece))
        held = np.concatenate([held, piece[:int(min(left, len(piece)))]])
        left -= min(left, len(piece))
        while len(held) >= size:
            yield held[:size]
            held = held[size:]
        if not left: break
    if len(held): yield held


# %%
#| export
def _check_part(start, duration):
    if start < 0 or (duration is not None and duration <= 0):
        raise LogocentricError('a part starts at 0 s or later and lasts longer than 0 s')


# %%
#| export
def stream_audio(path: str | Path, # a sound file
                 block_seconds: float = 10., # s in a block; the last may be shorter
                 sample_rate: int = 16_000, # Hz of the blocks
                 start: float = 0., # s into the file
                 duration: float | None = None, # s to read; all by default
                 found: Decoded | None = None # filled while the file is read
                ) -> Iterator[np.ndarray]: # (samples,) float32
    "Decode block by block, mono, resampled without seams, in memory that does not grow with the file's length."
    _check_part(start, duration)
    found = Decoded() if found is None else found
    pieces, skip, keep = _pieces(path, start, duration, sample_rate, found)
    blocks = _blocks(pieces, skip, keep, max(1, round(block_seconds*sample_rate)))
    if (first_block := next(blocks, None)) is None: raise AudioError(path, f'holds no sound at {start:g} s')
    yield first_block
    yield from blocks


# %% [markdown]
# A sound that fits into memory is such a stream put together.

# %%
#| export
def load_audio(path: str | Path, # a sound file
               start: float = 0., # s into the file
               duration: float | None = None, # s to read; all by default, less where the file ends earlier
               sample_rate: int = 16_000, # Hz wanted
               found: Decoded | None = None # filled while the file is read
              ) -> np.ndarray: # (samples,) float32
    "Decode a file, or a part of it, to mono at one sample rate."
    return np.concatenate(list(stream_audio(path, 60., sample_rate, start, duration, found)))


# %%
whole, part = load_audio(folder/'a.mp3'), load_audio(folder/'a.mp3', start=1.5, duration=1)
test_close(whole, naive_load(folder/'a.mp3'), eps=1e-5)
test_close(part, whole[24_000:40_000], eps=1e-5)
test_eq([len(b) for b in stream_audio(folder/'a.mp3', block_seconds=1.5)], [24_000, 24_000, 16_000])
whole.shape, part.shape


# %% [markdown]
# ### Sounds in memory
#
# A waveform that a program already holds passes the same checks. Channels come second, as in files; the other way round is noticed.
#
# Numbers with a fraction have ±1 as full scale. Integers have that of their type, as in files: of 8, 16 or 32 bits. What says nothing about its scale is refused rather than guessed: 64-bit integers, which is what numpy
# makes of a list, unsigned ones, and 32-bit integers that all fit into 16 bits, which would be as good as silence.

# %%
#| export
SCALES = {np.dtype(np.uint8): 128., np.dtype(np.int8): 128., np.dtype(np.int16): 2.**15, np.dtype(np.int32): 2.**31}


# %%
#| export
def _as_float(samples: np.ndarray, name: str) -> np.ndarray:
    "Integers become numbers within ±1, as files hold them."
    if samples.dtype.kind == 'f': return samples.astype(np.float32)
    scale, help = SCALES.get(samples.dtype), 'give 16-bit integers (int16), or floats within ±1'
    if scale is None: raise AudioError(name, f'holds samples of type {samples.dtype}, whose scale is unknown; {help}')
    wide = np.abs(samples.astype(np.float64)) if scale == 2.**31 else None
    if wide is not None and 0 < wide.max() <= 2**15:
        raise AudioError(name, f'holds 32-bit integers that all fit into 16 bits: is that their scale? Then {help}')
    return ((samples.astype(np.float64) - (128 if samples.dtype.kind == 'u' else 0))/scale).astype(np.float32)


# %%
#| export
def _as_array(samples, name: str) -> np.ndarray: # (samples, channels)
    try: samples = np.asarray(samples)
    except (TypeError, ValueError) as e: raise AudioError(name, f'is no array of samples: {e}') from e
    if samples.size == 0: raise AudioError(name, 'holds no samples')
    if samples.ndim not in (1, 2) or samples.ndim == 2 and samples.shape[1] > samples.shape[0]:
        raise AudioError(name, f'has shape {samples.shape}, not (samples,) or (samples, channels)')
    return samples.reshape(len(samples), -1)


# %%
#| export
def as_audio(samples: np.ndarray, # (samples,) or (samples, channels), within ±1 or of integers
             rate: float, # Hz of `samples`
             sample_rate: int = 16_000, # Hz wanted
             name: str = 'waveform', # for the error
             found: Decoded | None = None # filled
            ) -> np.ndarray: # (samples,) float32
    "A waveform in memory as `load_audio` would return it."
    for r in (rate, sample_rate): _check_rate(r, name)
    samples, power = _as_float(_as_array(samples, name), name), _Power()
    _check_samples(samples, name)
    power.add(samples)
    if found is not None:
        found.seconds, found.sample_rate, found.channels = len(samples)/rate, rate, samples.shape[1]
        found.notes += power.notes()
    return soxr.resample(_mono(samples), rate, sample_rate)


# %%
test_close(as_audio(stereo, rate), load_audio(folder/'a.flac'), eps=1e-5)
test_fail(lambda: as_audio(np.array([0, np.nan]), 16_000), contains='waveform: holds samples that are NaN')
test_fail(lambda: as_audio(stereo.T, rate), contains='has shape (2, 176400)')
test_fail(lambda: as_audio([0, 1200, -3000], rate), contains='type int64, whose scale is unknown')
test_fail(lambda: as_audio(3000*stereo, rate), contains='absurdly large where full scale is 1')
test_fail(lambda: as_audio(stereo, 0), contains='has a sample rate of 0 Hz')

# %% [markdown]
# ## What goes wrong, and what it is called
#
# Each of these files is either refused with a reason or has a defined answer.

# %%
flac = (folder/'a.flac').read_bytes()
sf.write(folder/'silence.wav', np.zeros(16_000), 16_000)
sf.write(folder/'20ms.wav', glide[:320], 16_000)
sf.write(folder/'nan.wav', np.full(100, np.nan), 16_000, 'FLOAT')
sf.write(folder/'no samples.wav', np.zeros(0), 16_000)
(folder/'half.flac').write_bytes(flac[:len(flac)//2])
(folder/'half.wav').write_bytes((folder/'silence.wav').read_bytes()[:16_000])
(folder/'empty.ogg').touch()
sf.write(folder/'slow.wav', glide[:100], 1)
(folder/'poem.mp3').write_text('Shall I compare thee to a summer’s day?', encoding='utf-8')
(folder/'my song.m4a').write_bytes(b'\0\0\0\x20ftypM4A ' + bytes(20));


# %%
def outcome(path):
    try: audio = load_audio(path)
    except AudioError as e: return e.reason.replace(f'{folder}/', '')
    return f'{len(audio)/16_000:g} s, the largest sample {abs(audio).max():.2f}'

for name in ['missing.wav', 'empty.ogg', 'no samples.wav', 'half.wav', 'half.flac', 'poem.mp3', 'nan.wav',
             'slow.wav', 'my song.m4a', 'silence.wav', '20ms.wav', 'opposite.wav']: print(f'{name:15} {outcome(folder/name)}')


# %% [markdown]
# ## The length policy
#
# The encoder has learned from clips of one length, and sounds have all lengths. What happens in between is usually a line of code that nobody looks at: others drop everything after ten seconds, or take a random crop,
# so that the same file gives another answer tomorrow. Here it is an object that can be printed, stored with the model, and asked what it did.

# %%
#| export
class Window(NamedTuple):
    "A stretch of a sound."
    start: float  # s
    stop: float   # s


# %%
#| export
@dataclass(frozen=True)
class LengthPolicy(Settings):
    "How a sound of any length meets an encoder of one length."
    window: float = 10. # s in a window
    hop: float = 10. # s from one window to the next
    patch_frames: int = 16 # frames in a patch: log-mels are padded to a multiple
    min_seconds: float = 1. # s: a shorter rest at the end is dropped, and reported
    aggregate: str = 'mean' # how the windows' embeddings become one: `mean`, weighted by length, or `max`


# %%
#| export
@patch
def check(self: LengthPolicy):
    "Windows must meet, and an aggregate must exist."
    if not 0 < self.hop <= self.window: raise LogocentricError('windows must meet: 0 < hop <= window')
    if self.aggregate not in ('mean', 'max'):
        raise LogocentricError(f'aggregate is mean or max, not {self.aggregate}')


# %% [markdown]
# Windows follow each other until the sound is covered. A short sound is one short window. A rest shorter than `min_seconds` is dropped, and a sound that fills its windows exactly gets no empty one at the end.

# %%
#| export
@patch
def windows(self: LengthPolicy, seconds: float) -> list[Window]: # s, length of the sound
    "The windows that cover a sound of some length."
    if seconds <= 0: raise LogocentricError('a sound has to last longer than 0 s')
    found, enough = [], max(self.min_seconds, 1e-6) - 1e-9
    while not found or seconds - found[-1].stop > enough:
        start = len(found)*self.hop
        found.append(Window(start, min(start + self.window, seconds)))
    return found


# %%
policy = LengthPolicy()
test_eq(policy.windows(30), [(0, 10), (10, 20), (20, 30)])
test_eq(policy.windows(.02), [(0, .02)])
test_eq(policy.windows(20.5), [(0, 10), (10, 20)])
test_fail(lambda: LengthPolicy(hop=12.), contains='windows must meet')
LengthPolicy(hop=5.).windows(22.)


# %% [markdown]
# And it states what was covered.

# %%
#| export
def _seconds(x: float) -> str:
    return f'{x:.1f}' if x >= .05 or x < 5e-7 else f'{x:.2g}'


# %%
#| export
@patch
def coverage(self: LengthPolicy, seconds: float) -> str: # s, length of the sound
    "One line that says which seconds are covered and how many are dropped."
    found = self.windows(seconds)
    stop, s = found[-1].stop, '' if len(found) == 1 else 's'
    return f'heard 0.0–{_seconds(stop)} s in {len(found)} window{s}, {_seconds(seconds - stop)} s dropped'


# %%
test_eq(policy.coverage(30), 'heard 0.0–30.0 s in 3 windows, 0.0 s dropped')
for seconds in (.02, 7.3, 20.5, 3600): print(policy.coverage(seconds))


# %% [markdown]
# ### A file in windows
#
# All together: a file of any length, window by window, holding no more than a window at a time.

# %%
#| export
class _Ahead:
    "A file that is decoded as far as somebody asks, and what of it is still held."
    def __init__(self, path: str | Path, sample_rate: int, found: Decoded):
        self.pieces, self.rate, self.found = _resampled(path, sample_rate, found), sample_rate, found
        self.held, self.at, self.ended = np.zeros(0, np.float32), 0, False

    def read_to(self, seconds: float):
        "Decode up to some second, or to the end."
        new = [self.held]
        length = len(self.held)
        while not self.ended and (self.found.seconds < seconds or self.at + length < seconds*self.rate):
            piece = next(self.pieces, None)
            self.ended = piece is None
            if piece is not None: new.append(piece); length += len(piece)
        self.held = np.concatenate(new)


# %%
#| export
@patch
def samples(self: _Ahead, window: Window) -> np.ndarray:
    "The samples of a window; what lies before it is let go."
    start, stop = round(window.start*self.rate), round(window.stop*self.rate)
    self.held, self.at = self.held[start - self.at:], start
    return self.held[:stop - start]


# %% [markdown]
# How long a file is, one knows at its end. So each window is decided from what has been decoded: a full one when all of it is there, and the next one as soon as `min_seconds` of it are. Only at the end the list of windows
# is that of the length.

# %%
#| export
def stream_windows(path: str | Path, # a sound file
                   policy: LengthPolicy = LengthPolicy(), # which windows
                   sample_rate: int = 16_000, # Hz wanted
                   found: Decoded | None = None # filled while the file is read
                  ) -> Iterator[tuple[Window, np.ndarray]]: # a window and its (samples,) float32
    "The windows of a file, decoded one after the other in bounded memory."
    sound = _Ahead(path, sample_rate, Decoded() if found is None else found)
    for n in itertools.count():
        start = n*policy.hop
        sound.read_to(max(start + policy.window, start + policy.window - policy.hop + policy.min_seconds + 1e-3))
        if sound.ended: break
        window = Window(start, start + policy.window)
        yield window, sound.samples(window)
    for window in policy.windows(sound.found.seconds)[n:]: yield window, sound.samples(window)


# %% [markdown]
# Twenty-two seconds of our sound, in overlapping windows:

# %%
sf.write(folder/'long.ogg', np.tile(stereo, (6, 1))[:22*rate], rate)
overlapping = LengthPolicy(hop=7.)
found, waves = zip(*stream_windows(folder/'long.ogg', overlapping))
test_close(waves[1][:48_000], waves[0][112_000:], eps=1e-7)
print(overlapping.coverage(audio_info(folder/'long.ogg').duration))
found

# %%
fig, axes = plt.subplots(len(found), 1, figsize=(7, 2), sharex=True)
for ax, window, wave in zip(axes, found, waves): ax.plot(window.start + np.arange(len(wave))/16_000, wave, lw=.2)
ax.set_xlabel('time (s)');

# %% [markdown]
# ### Is it so?
#
# That windows, whole and length agree can be asked of any file. Whoever damages files on purpose can ask it of each.

# %%
#| export
def check_decoding(path: str | Path, # a sound file
                   policy: LengthPolicy = LengthPolicy(), # which windows
                   sample_rate: int = 16_000 # Hz
                  ) -> Decoded:
    "Decode a file in three ways; an `AudioError` if they differ, or if anything is claimed that was not decoded."
    found = Decoded()
    windows, whole = list(stream_windows(path, policy, sample_rate, found)), load_audio(path, sample_rate=sample_rate)
    lengths = [len(whole)/sample_rate, audio_info(path).duration]
    wrong = [f'{length:.3f} s' for length in lengths if abs(length - found.seconds) > 2/sample_rate]
    if wrong: raise AudioError(path, f'{found.seconds:.3f} s were claimed, and {" and ".join(wrong)} found')
    if [w for w, _ in windows] != policy.windows(found.seconds): raise AudioError(path, 'windows are not its own')
    for window, wave in windows:
        if not np.array_equal(wave, whole[round(window.start*sample_rate):round(window.stop*sample_rate)]):
            raise AudioError(path, f'the window at {window.start:g} s is not that part of the whole')
    return found


# %%
check_decoding(folder/'two.mp3', overlapping)

# %% [markdown]
# From here on a sound is an array of samples, within ±1, at 16 kHz. The next chapter makes it visible.

# %%
#| hide
import shutil
shutil.rmtree(folder)
