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
# # Doctor
#
# > Which sound files of a data set are missing, broken, silent, cut short, doubled or misplaced, said before any model meets them.
#
# A manifest knows whether a file is there; only the decoder knows whether it holds sound. At the end of this notebook you can point at a published
# data set, a table of your own or any folder of sounds, and get a list of findings in words and numbers, and a skip list that every loader honours.
# No file of yours is changed or deleted.

# %%
#| default_exp data.doctor

# %%
#| export
import hashlib, json, multiprocessing, os, re, tempfile
from collections import deque
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Callable, Iterable, Iterator, NamedTuple
import numpy as np, pandas as pd

# %%
#| export
from fastcore.basics import patch
from logocentric.core import cache_path, load_asset
from logocentric.cache import progress
from logocentric.audio.decoding import BY_FFMPEG, COMPLAINED, Decoded, _mono, read_blocks
from logocentric.audio.formats import AudioError
from logocentric.data.corpus import _start_worker
from logocentric.data.datasets import identify, read_dataset, recognised_sets
from logocentric.data.lists import AUDIO_SUFFIXES, SPLIT_NAMES, DataError, audio_files, audio_stem, existing_folder
from logocentric.data.manifests import Manifest, manifest_table

# %%
import soundfile as sf
from IPython.display import display
from fastcore.test import test_close, test_eq, test_fail
from logocentric.data.class_sets import GTZAN_GENRES

# %% [markdown]
# The patients of this notebook are made here: ten seconds of a falling tone with a little noise, and what can go wrong with it.

# %%
tempdir = tempfile.TemporaryDirectory()
scratch = Path(tempdir.name)
os.environ['LOGOCENTRIC_HOME'] = tempdir.name # the cache of this notebook goes with it

def tone(seconds=10., seed=0, rate=16_000):
    t = np.arange(int(seconds*rate))/rate
    noise = np.random.default_rng(seed).normal(0, .01, len(t))
    return (.3*np.sin(2*np.pi*(400 + 20*seed)*t*np.exp(-t/20)) + noise).astype(np.float32)

def put(path, wave, **kwargs):
    (scratch/path).parent.mkdir(parents=True, exist_ok=True)
    sf.write(scratch/path, (32767*wave).astype(np.int16), 16_000, **kwargs)
    return scratch/path


# %% [markdown]
# ## Measures of one file
#
# All measures come out of one pass over the decoded samples, in blocks, so that an hour takes no more memory than a second.
#
# ### Clipped
#
# The naive measure counts samples at full scale. It accuses every file that was normalised to its peak: a healthy one touches full scale, here
# and there, for one sample.

# %%
healthy, loud = tone(), np.clip(6*tone(), -1, 1)
healthy = healthy/np.abs(healthy).max()
[float(np.mean(np.abs(w) >= .999)) for w in (healthy, loud)]

# %% [markdown]
# Clipping is a plateau: several samples *in a row* at full scale. We count those in runs of at least three. A recording that was clipped and
# turned down afterwards is not found.

# %%
#| export
FULL_SCALE = .999 # of full scale; 16-bit rounding keeps the loudest sample above it


# %%
#| export
def clipped_samples(samples: np.ndarray # (frames, channels), within ±1
                   ) -> int:            # frames in a run of three or more at full scale, in any channel
    "How many frames lie on a plateau at full scale."
    full = np.abs(samples) >= FULL_SCALE
    if not full.any(): return 0
    inside, three = np.zeros_like(full), full[:-2] & full[1:-1] & full[2:]
    for shift in range(3): inside[shift:len(full) - 2 + shift] |= three
    return int(inside.any(axis=1).sum())


# %%
test_eq(clipped_samples(np.array([[0, 1, 1, 0, -1, -1, -1, 0.]]).T), 3)
test_eq(clipped_samples(healthy[:, None]), 0)
f'{clipped_samples(loud[:, None])/len(loud):.1%}'


# %% [markdown]
# ### The same sound
#
# A hash of the file would miss a `.wav` beside its `.flac`. We hash the sound: the mono mix at the file's own rate, rounded to 16 bits, and the
# rate. It finds copies under other names and in any lossless format, and stereo of two equal channels beside mono. It does **not** find a copy
# that went through MP3 or Vorbis, was resampled, cut, or made louder: those are other samples.

# %%
#| export
def _pcm(mono: np.ndarray) -> bytes: # (samples,)
    "Samples as 16-bit integers, little-endian."
    return np.clip(np.rint(mono*32768.), -32768, 32767).astype('<i2').tobytes()


# %%
copies = [sf.read(put(f'hash/a.{suffix}', tone()), dtype='float32')[0] for suffix in ('wav', 'flac', 'aiff', 'mp3')]
hashes = [hashlib.sha256(_pcm(copy)).hexdigest()[:8] for copy in copies]
test_eq(len(set(hashes[:3])), 1)
hashes


# %% [markdown]
# ### All at once
#
# An MP3 with a damaged frame decodes: the decoder skips the frame, and says so on standard error, where nobody reads it. `read_blocks` counts such
# complaints, and notes what else is odd. What is measured is kept with the size and the time of the file, by which a later run knows that it has not changed.

# %%
#| export
@dataclass
class FileMeasures:
    "What one pass over a sound file found."
    path: str                  # as it was given
    size: int = 0              # bytes
    mtime: int = 0             # ns, when the file was changed last
    seconds: float = 0.        # that can be decoded
    rate: int = 0              # Hz
    channels: int = 0
    format: str = ''           # e.g. `WAV PCM_16`
    peak: float = 0.           # half the distance from the lowest to the highest sample of the mono mix
    rms: float = 0.            # of the mono mix
    clipped: float = 0.        # share of the frames on a plateau at full scale
    hash: str = ''             # of the mono mix as 16-bit samples, and the rate
    decoder_warnings: int = 0  # complaints of the decoder about damage
    notes: str = ''            # what else a listener should know
    error: str = ''            # why it cannot be decoded to the end


# %% [markdown]
# Block by block, sums and extremes are carried along; at the end they become the measures.

# %%
#| export
class _Running:
    "Sums and extremes of a sound that is read block by block."
    def __init__(self, rate: int):
        self.digest, self.frames, self.clipped, self.power = hashlib.sha256(str(rate).encode()), 0, 0, 0.
        self.low, self.high = np.inf, -np.inf

    def add(self, block: np.ndarray, mono: np.ndarray): # (frames, channels), (frames,)
        self.digest.update(_pcm(mono))
        self.frames += len(block)
        self.clipped += clipped_samples(block)
        self.power += float(np.square(mono, dtype=np.float64).sum())
        self.low, self.high = min(self.low, float(mono.min())), max(self.high, float(mono.max()))


# %% [markdown]
# All but clipping is judged by the mono mix, which is what a model hears: a sound whose channels cancel is silent. The peak is half the distance between
# the extremes, so that a constant offset is silence, too; the root mean square is $\sqrt{\sum x^2/n}$.

# %%
#| export
@patch
def measures(self: _Running) -> dict:
    "What the blocks so far come to."
    return dict(peak=(self.high - self.low)/2, rms=(self.power/self.frames)**.5, clipped=self.clipped/self.frames,
                hash=self.digest.hexdigest()[:16])


# %% [markdown]
# It is read as every other chapter reads it, so that the doctor and the decoder agree about what can be decoded.

# %%
#| export
def _measures(path: Path) -> dict:
    "One pass over the samples."
    found, running = Decoded(), None
    for rate, block in read_blocks(path, found):
        running = running or _Running(rate)
        running.add(block, _mono(block))
    notes = '; '.join(note for note in found.notes if note != BY_FFMPEG and COMPLAINED not in note)
    return dict(seconds=found.seconds, rate=found.sample_rate, channels=found.channels, format=found.format,
                **running.measures(), decoder_warnings=found.complaints, notes=notes)


# %% [markdown]
# A file that cannot be decoded is a finding and no error, whatever the decoder raised.

# %%
#| export
def examine(path: str | Path # a sound file
           ) -> FileMeasures:
    "Decode a file once, and measure it."
    found = FileMeasures(str(path))
    try:
        stat = os.stat(path)
        found.size, found.mtime = stat.st_size, stat.st_mtime_ns
        return FileMeasures(**(asdict(found) | _measures(Path(path))))
    except AudioError as e: found.error = e.reason
    except FileNotFoundError: found.error = 'no such file'
    except Exception as e: found.error = f'{type(e).__name__}: {e}'
    return found


# %%
measured = examine(put('one/a.wav', tone()))
test_eq((measured.seconds, measured.rate, measured.error, measured.clipped), (10, 16_000, '', 0))
test_close(measured.rms, np.sqrt(np.mean(tone()**2)), 1e-3)
f'{measured.seconds} s, {measured.rms:.3f} rms, {measured.hash}'

# %% [markdown]
# A download that broke off, a page that says "not found", saved as a sound, and a file that is not there.

# %%
whole = put('one/b.wav', tone()).read_bytes()
(scratch/'one'/'cut.wav').write_bytes(whole[:len(whole)//3])
(scratch/'one'/'page.wav').write_text('<html>404</html>')
[examine(scratch/'one'/f'{name}.wav').error for name in ('cut', 'page', 'nobody')]

# %% [markdown]
# ## Many files
#
# Examining is decoding, and decoding eight thousand songs takes minutes: it is spread over processes, and what was found is written down at once,
# a line a file, so that a run which is killed goes on where it was. Nothing is measured twice while path, size and time stay as they are.

# %%
#| export
MEASURES_VERSION = 2 # raise it when a measure changes its meaning: what was kept before is measured again


# %%
#| export
def _parsed_line(line: str) -> FileMeasures | None:
    "The measures on a line; `None` where it was left unfinished or written by another version."
    try: row = json.loads(line)
    except json.JSONDecodeError: return None
    if not isinstance(row, dict) or row.pop('measures', 0) != MEASURES_VERSION: return None
    return FileMeasures(**row) if set(row) == {f.name for f in fields(FileMeasures)} else None


# %%
#| export
def _read_measures(file: Path) -> dict[tuple, FileMeasures]:
    "What earlier runs found, by path, size and time."
    lines = file.read_text(encoding='utf-8').splitlines() if file.is_file() else ()
    return {(m.path, m.size, m.mtime): m for m in map(_parsed_line, lines) if m}


# %% [markdown]
# A run that was killed may have left half a line behind; the next one begins a new line.

# %%
#| export
@contextmanager
def _measures_writer(file: Path) -> Iterator[Callable[[FileMeasures], None]]:
    "A function that appends one result to the file."
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, 'a+b') as f:
        f.seek(max(0, f.seek(0, 2) - 1))
        if f.read(1) not in (b'', b'\n'): f.write(b'\n')
        def write(found):
            f.write((json.dumps(dict(asdict(found), measures=MEASURES_VERSION)) + '\n').encode())
            f.flush()
        yield write


# %%
file = scratch/'kept.jsonl'
with _measures_writer(file) as write: write(measured)
with open(file, 'a') as f: f.write('{"path": "half a li')
with _measures_writer(file) as write: write(examine(scratch/'one'/'b.wav'))
test_eq(list(_read_measures(file).values())[0], measured)
len(_read_measures(file))

# %% [markdown]
# A decoder may do worse than raise: it may take its process with it. Then the pool is broken, and one of the few files in flight is to blame.
# They are tried again, each alone; the one at which a process dies again is the culprit.

# %%
#| export
FILES_PER_TASK = 8 # that a process gets at once


# %%
#| export
def _examine_files(paths: list[str]) -> list[FileMeasures]: return [examine(p) for p in paths]


# %%
#| export
def _crashed(path: str) -> FileMeasures:
    stat = os.stat(path)
    return FileMeasures(path, stat.st_size, stat.st_mtime_ns, error='the decoder crashed on it')


# %%
#| export
def _run_pool(work: Callable, tasks: deque, running: dict, processes: int, in_flight: int) -> Iterator:
    "Results of one pool as they come; tasks that are running when it breaks stay in `running`."
    with ProcessPoolExecutor(processes, multiprocessing.get_context('spawn'), _start_worker) as pool:
        while tasks or running:
            while tasks and len(running) < in_flight:
                running[pool.submit(work, tasks[0])] = tasks[0]
                tasks.popleft()
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                result = done.result()
                del running[done]
                yield result


# %% [markdown]
# A pool that breaks leaves what was in flight to be tried again, one file at a time and one process.

# %%
#| export
def _run_in_processes(work: Callable,             # a function of a module, of a list of paths
                      tasks: Iterable[list[str]],
                      processes: int,
                      in_flight: int              # tasks that are given out at a time
                     ) -> Iterator[list[FileMeasures]]:
    "Results from worker processes, as they come; what kills a worker is found and named."
    tasks, running = deque(tasks), {}
    while tasks:
        try: yield from _run_pool(work, tasks, running, processes, in_flight)
        except BrokenProcessPool:
            suspects, running = [path for task in running.values() for path in task], {}
            if in_flight == 1 and len(suspects) == 1: yield [_crashed(suspects[0])]
            else: yield from _run_in_processes(work, [[path] for path in suspects], 1, 1)


# %% [markdown]
# Files that did not change since an earlier run are taken from its notes; all others are measured, here or in processes.

# %%
#| export
def _known_files(cache: Path, paths: list[str]) -> dict[str, FileMeasures]:
    "Files that have not changed since an earlier run measured them."
    kept = _read_measures(cache)
    keys = {p: (p, stat.st_size, stat.st_mtime_ns) for p in paths for stat in [os.stat(p)]}
    return {p: kept[key] for p, key in keys.items() if key in kept}


# %%
#| export
def _results(paths: list[str], processes: int, work: Callable) -> Iterator[list[FileMeasures]]:
    "Measures of files, here or in processes."
    tasks = [paths[i:i + FILES_PER_TASK] for i in range(0, len(paths), FILES_PER_TASK)]
    if not processes or not tasks: return map(work, tasks)
    return _run_in_processes(work, tasks, min(processes, len(tasks)), 2*processes)


# %% [markdown]
# Each result is written before the next is awaited.

# %%
#| export
def _kept_at_once(results: Iterable[list[FileMeasures]], cache: Path, total: int, known: int) -> Iterator[FileMeasures]:
    "Measures as they come, each written to the cache before anything else is done with it."
    with progress(total=total, initial=known, desc='examine', unit='file') as bar, _measures_writer(cache) as write:
        for measures in (m for result in results for m in result):
            write(measures)
            bar.update()
            yield measures


# %%
#| export
def examine_all(paths: list[str | Path], # sound files
                cache: Path, # what was found, a line a file; kept from run to run
                processes: int | None = None, # workers; by default one a core; 0: none, all is done here
                work: Callable = _examine_files # measures a list of files
               ) -> tuple[list[FileMeasures], int]: # one a path, and how many of them were measured now
    "Measure files that no earlier run has measured."
    paths = list(dict.fromkeys(map(str, paths)))
    found = _known_files(cache, paths)
    todo = [path for path in paths if path not in found]
    results = _results(todo, os.cpu_count() if processes is None else processes, work)
    for measures in _kept_at_once(results, cache, len(paths), len(found)): found[measures.path] = measures
    return [found[path] for path in paths], len(todo)


# %%
paths = sorted((scratch/'one').iterdir())
(first, now), (second, later) = [examine_all(paths, scratch/'cache.jsonl', processes=0) for _ in range(2)]
test_eq(first, second)
now, later


# %% [markdown]
# ## Kinds of findings
#
# What must be left out goes on the skip list by itself; a *problem* is for you to judge, and goes there when you ask; a *note* is worth knowing.

# %%
#| export
class FindingKind(NamedTuple):
    "A kind of finding."
    severity: str  # out, problem or note
    meaning: str


# %%
#| export
_TABLES = load_asset('findings.toml')
FINDING_KINDS = {name: FindingKind(**kind) for name, kind in _TABLES['kinds'].items()}
KNOWN_FAULTS = _TABLES['known_faults'] # by data set and id

# %%
kinds = pd.DataFrame(FINDING_KINDS.values(), index=list(FINDING_KINDS))
with pd.option_context('display.max_colwidth', None): display(kinds)

# %% [markdown]
# Some clips are broken for everybody. GTZAN's `jazz.00054` cannot be read, and is in the list of the filtered split all the same. FMA small has
# three tracks without audio and three of a second or so, and its checksums pass on all six: our notes, and the lists of faulty tracks that several
# public projects carry, agree; we have not seen the files ourselves. OpenMIC-2018's README speaks of ten FMA tracks that were corrupted *when its
# labels were collected*, and of three labels corrected since; it names no clip as broken in what was published, so that none is entered here.

# %%
KNOWN_FAULTS

# %% [markdown]
# ## From measures to findings
#
# ### Broken and silent
#
# Near silence is a peak below −60 dBFS, about the noise of a bad cable.

# %%
#| export
SILENCE_DBFS, CLIPPED_SHARE = -60., .001 # of the peak; of the frames


# %%
#| export
def decibels(x: float) -> float:
    "An amplitude in dBFS."
    return round(20*np.log10(max(x, 1e-10)), 1) + 0. # and no −0


# %%
#| export
def _finding(row: dict, kind: str, message: str) -> dict:
    return dict(kind=kind, id=row['id'], path=row['path'], split=row['split'], message=message)


# %% [markdown]
# A file cut short is told apart from one that never was a sound.

# %%
#| export
def _error_kind(error: str) -> str:
    cut = any(words in error for words in ('header promises', 'gave up before the end'))
    return 'truncated' if cut else 'unreadable'


# %%
#| export
def _level(m: FileMeasures) -> str:
    return f'its peak is {decibels(m.peak):.1f} dBFS' if m.peak else 'digital silence: all samples are the same'


# %%
#| export
def _file_findings(row: dict,      # of a manifest
                   m: FileMeasures # of its file
                  ) -> Iterator[dict]:
    "What is wrong with one file by itself."
    if m.error: yield _finding(row, _error_kind(m.error), m.error); return
    if decibels(m.peak) < SILENCE_DBFS: yield _finding(row, 'silent', f'{_level(m)}, for {m.seconds:.1f} s')
    if m.notes: yield _finding(row, 'odd', m.notes)
    if m.clipped > CLIPPED_SHARE:
        yield _finding(row, 'clipped', f'{m.clipped:.1%} of the samples lie on plateaus at full scale; {_level(m)}')
    if m.decoder_warnings:
        yield _finding(row, 'damaged', f'{m.seconds:.1f} s decode, and the decoder complained of damage '
                                       f'{m.decoder_warnings} times')


# %%
row = dict(id='a', path='a.wav', split='train')
cases = dict(healthy=tone(), loud=loud, nothing=0*tone(), faint=1e-3*tone(), constant=0*tone() + .2)
found = {name: [f['kind'] for f in _file_findings(row, examine(put(f'ill/{name}.flac', w)))]
         for name, w in cases.items()}
test_eq(found['healthy'], [])
found

# %% [markdown]
# ### Short
#
# A file that decodes to its end may still lack the rest, as an MP3 without a length in its header does. It is held against what its list says, or,
# where no list speaks, against the others: if four in five clips are of one length, all should be.

# %%
#| export
SHORT_SHARE = .9 # of the length expected


# %%
#| export
def majority_value(values: Iterable,  # of a set's files
                   near: Callable = lambda a, b: a == b # whether two values count as one
                  ):                  # the value, or `None` where there is none
    "The value that at least four in five files have, of five or more."
    values = sorted(values)
    middle = values[len(values)//2] if len(values) > 4 else None
    return middle if middle is not None and sum(near(v, middle) for v in values) >= .8*len(values) else None


# %%
test_eq(majority_value([30., 30.01, 29.98, 30., 12.], lambda a, b: abs(a - b) < .05*b), 30.)
majority_value([30., 5., 100., 12., 7.]), majority_value([30.]*4)


# %%
#| export
def _length_findings(row: dict, m: FileMeasures, length: float | None) -> Iterator[dict]: # usual length, s
    listed = row['duration'] == row['duration']
    expected = row['start'] + row['duration'] if listed else length
    if expected and m.seconds < SHORT_SHARE*expected:
        source = 'the list' if listed else 'the length of the other clips'
        yield _finding(row, 'short', f'{m.seconds:.1f} s found, {expected:.1f} s expected by {source}')


# %% [markdown]
# ### Names
#
# The suffix is a claim about the content. A class in the name of a file is one about its folder.

# %%
#| export
SUFFIX_FORMATS = {'.wav': 'WAV WAVEX RF64', '.flac': 'FLAC', '.ogg': 'OGG', '.opus': 'OGG', '.mp3': 'MP3 MPEG',
                  '.au': 'AU', '.aif': 'AIFF', '.aiff': 'AIFF', '.m4a': 'M4A', '.mp4': 'M4A', '.webm': 'WEBM'}


# %%
#| export
def _suffix_findings(row: dict, m: FileMeasures) -> Iterator[dict]:
    suffix, inside = Path(row['path']).suffix.lower(), m.format.partition(' ')[0]
    if suffix in SUFFIX_FORMATS and inside not in SUFFIX_FORMATS[suffix].split():
        yield _finding(row, 'misnamed', f'named {suffix}, and it holds {m.format}')


# %%
mp3 = put('names/a.mp3', tone()).rename(scratch/'names'/'a.wav')
list(_suffix_findings(dict(row, path='names/a.wav'), examine(mp3)))[0]['message']


# %%
#| export
def _folder_findings(row: dict, classes: set[str]) -> Iterator[dict]: # names in lower case
    path = Path(row['path'])
    folder, named = path.parent.name.lower(), re.split(r'[^a-z]', path.name.lower())[0]
    if {folder, named} <= classes and folder != named:
        yield _finding(row, 'misplaced', f'its name says {named}, its folder {folder}')


# %%
test_eq(list(_folder_findings(dict(row, path='genres/jazz/jazz.00012.wav'), {'blues', 'jazz'})), [])
list(_folder_findings(dict(row, path='genres/blues/jazz.00012.wav'), {'blues', 'jazz'}))[0]['message']


# %% [markdown]
# ### Twice
#
# Of a group of equal sounds one is kept, one to test on before one to train on: a leak is closed by taking clips out of training. Silent files are
# all alike, and accused already.

# %%
#| export
def _split_rank(split: str) -> int: # 0 for a test set
    return {'test': 0, 'validation': 1}.get(SPLIT_NAMES.get(split.lower()), 2)


# %%
#| export
def _equal_sounds(pairs: list[tuple[dict, FileMeasures]]) -> Iterator[list[dict]]: # row and file
    "Groups of rows with the same sound in different files, the one to keep first."
    groups = {}
    for row, m in pairs:
        if m.hash and decibels(m.peak) >= SILENCE_DBFS: groups.setdefault(m.hash, {}).setdefault(m.path, row)
    for group in groups.values():
        if len(group) > 1: yield sorted(group.values(), key=lambda row: _split_rank(row['split']))


# %%
#| export
def _duplicate_findings(pairs: list[tuple[dict, FileMeasures]]) -> Iterator[dict]: # row and file
    "Equal sounds in different files."
    for first, *others in _equal_sounds(pairs):
        for row in others:
            leak = row['split'] != first['split']
            splits = f" in {first['split'] or 'no split'}, and this one is in {row['split'] or 'no split'}"
            other = ', with other labels' if sorted(row['labels']) != sorted(first['labels']) else ''
            yield _finding(row, 'leak' if leak else 'duplicate', f"the same sound as {first['id']}{splits*leak}{other}")


# %% [markdown]
# ### Known
#
# What is wrong with a clip that is broken for everybody is no news of this copy; that such a clip is healthy here, is.

# %%
#| export
def _recovered(findings: pd.DataFrame, manifest: Manifest, known: dict[str, str]) -> list[dict]: # faults by id
    "Clips that are known as broken, and healthy here."
    ill = set(findings['id'][[FINDING_KINDS[k].severity == 'out' or k == 'short' for k in findings['kind']]])
    return [_finding(row, 'known', f"{known[row['id']]}: not so here") for row in manifest.table.to_dict('records')
            if row['id'] in known and row['id'] not in ill]


# %%
#| export
def _with_known(findings: pd.DataFrame, manifest: Manifest) -> pd.DataFrame:
    "Findings with their severity and with what is known of each clip."
    known = KNOWN_FAULTS.get(manifest.name, {})
    recovered = pd.DataFrame(_recovered(findings, manifest, known), columns=findings.columns)
    findings = pd.concat([findings, recovered], ignore_index=True)
    return findings.assign(severity=[FINDING_KINDS[k].severity for k in findings['kind']],
                           known=[known.get(i, '') for i in findings['id']])


# %% [markdown]
# ## The diagnosis
#
# A folder in no known layout has no list. Its files are their own: each is a clip by its path, and the folders `train` and `test` on top, where
# there are such, are splits.

# %%
#| export
def _top_split(path: str) -> str:
    top = path.partition('/')[0]
    return top if top.lower() in SPLIT_NAMES else ''


# %%
#| export
def folder_manifest(folder: str | Path) -> Manifest:
    "A manifest of the sound files below a folder, whatever they are."
    folder = existing_folder(folder)
    if not (paths := audio_files(folder)):
        raise DataError(f'{folder.name} holds no sound files: looked for {", ".join(AUDIO_SUFFIXES)}')
    rows = [dict(id=path, path=path, split=_top_split(path)) for path in paths]
    return Manifest(manifest_table(rows), folder.resolve().name, folder)


# %%
#| export
@dataclass(repr=False)
class Diagnosis:
    "What the doctor found."
    manifest: Manifest       # what was to be there
    findings: pd.DataFrame   # kind, id, path, split, message, severity, known
    examined: pd.DataFrame   # the measures, a row a file
    measured: int            # files that were decoded now; the others were known from earlier runs


# %% [markdown]
# Paths alone tell of files in no list, and of files in the wrong folder.

# %%
#| export
def _unlisted(manifest: Manifest, files: list[str]) -> list[dict]: # all sound files of the folder
    "Sound files in no list, as rows."
    listed = set(manifest.table['path']) | set(manifest.skipped['path'])
    return [dict(id=audio_stem(path), path=path, split='') for path in files if path not in listed]


# %%
#| export
def _path_findings(manifest: Manifest) -> Iterator[dict]:
    "What paths alone tell."
    files = audio_files(Path(manifest.root))
    unlisted = _unlisted(manifest, files)
    for row in unlisted: yield _finding(row, 'unlisted', 'a sound file in no list')
    classes = {str(name).lower() for name in manifest.vocabulary or {Path(p).parent.name for p in files}}
    for row in [*manifest.table.to_dict('records'), *unlisted]: yield from _folder_findings(row, classes)


# %% [markdown]
# Some findings need all files: what is usual is known only then.

# %%
#| export
def _format_findings(row: dict, m: FileMeasures, usual: tuple[int, int] | None) -> Iterator[dict]: # Hz and channels
    if usual and (m.rate, m.channels) != usual:
        rate, channels = usual
        yield _finding(row, 'format', f'{m.rate} Hz, {m.channels} channels; nearly all others: {rate} Hz, {channels}')


# %%
#| export
def _comparative_findings(pairs: list[tuple[dict, FileMeasures]]) -> Iterator[dict]:
    "What is wrong with a file, compared with the others that can be decoded."
    length = majority_value([m.seconds for _, m in pairs], lambda a, b: abs(a - b) < .05*b)
    usual = majority_value([(m.rate, m.channels) for _, m in pairs])
    for row, m in pairs:
        yield from _length_findings(row, m, length)
        yield from _suffix_findings(row, m)
        yield from _format_findings(row, m, usual)


# %% [markdown]
# Here are all of them together.

# %%
#| export
def _findings(manifest: Manifest, pairs: list[tuple[dict, FileMeasures]]) -> pd.DataFrame: # rows and files
    "All findings of the clips of a manifest."
    decoded = [(row, m) for row, m in pairs if not m.error]
    rows = manifest.table.to_dict('records')
    found = [_finding(row, 'missing', 'the sound file is missing') for row in rows if row['missing']]
    for row, m in pairs: found += _file_findings(row, m)
    found += [*_comparative_findings(decoded), *_duplicate_findings(decoded), *_path_findings(manifest)]
    return _with_known(pd.DataFrame(found, columns=['kind', 'id', 'path', 'split', 'message']), manifest)


# %% [markdown]
# `diagnose` takes a manifest or a folder. A folder is read as the published set that it holds, or else as it is.

# %%
#| export
def _cache_of(root: Path) -> Path:
    return cache_path('doctor', hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:12] + '.jsonl')


# %%
#| export
def find_manifest(folder: str | Path) -> Manifest: # a published data set, or any sounds
    "The manifest of a folder: of the data set that it is, else of the files in it."
    if recognised_sets(existing_folder(folder)): return read_dataset(identify(folder), folder)
    return folder_manifest(folder)


# %%
#| export
def _examined_table(measures: list[FileMeasures]) -> pd.DataFrame:
    return pd.DataFrame([asdict(m) for m in measures], columns=[f.name for f in fields(FileMeasures)])


# %%
#| export
def diagnose(what: Manifest | str | Path,  # a manifest, or a folder: a published data set, or any sounds
             processes: int | None = None  # workers; by default one a core; 0: none, all is done here
            ) -> Diagnosis:
    "Examine every clip that is there, and say what is wrong."
    manifest = what if isinstance(what, Manifest) else find_manifest(what)
    rows = [row for row in manifest.table.to_dict('records') if not row['missing']]
    paths = [os.path.abspath(Path(manifest.root)/row['path']) for row in rows]
    measures, measured = examine_all(paths, _cache_of(Path(manifest.root)), processes)
    by_path = {m.path: m for m in measures}
    findings = _findings(manifest, [(row, by_path[path]) for row, path in zip(rows, paths)])
    return Diagnosis(manifest, findings, _examined_table(measures), measured)


# %% [markdown]
# A miniature of GTZAN with one of everything.

# %%
for n, genre in enumerate(GTZAN_GENRES): put(f'gtzan/genres/{genre}/{genre}.00000.wav', tone(3, seed=n))
sick = {'blues/blues.00001': tone(3), 'pop/pop.00001': np.clip(9*tone(3, 11), -1, 1), 'rock/rock.00001': 0*tone(3),
        'metal/metal.00001': tone(1, 12), 'blues/jazz.00012': tone(3, 13)}
(scratch/'gtzan/genres/jazz/jazz.00054.wav').write_bytes(b'RIFF')
for path, wave in sick.items(): put(f'gtzan/genres/{path}.wav', wave)

# %%
diagnosis = diagnose(scratch/'gtzan', processes=0)
shown = diagnosis.findings[diagnosis.findings.kind != 'missing']
test_eq(set(shown.kind), {'unreadable', 'silent', 'short', 'duplicate', 'misplaced', 'clipped', 'unlisted'})
shown[['kind', 'id', 'message', 'known']].set_index('kind')


# %% [markdown]
# ### A summary, a skip list

# %%
#| export
def _summary_row(kind: str, found: pd.DataFrame) -> dict: # findings of that kind
    first = found.iloc[0]
    return dict(kind=kind, severity=FINDING_KINDS[kind].severity, clips=found['id'].nunique(),
                known=found['id'][found['known'] != ''].nunique(), example=f"{first['id']}: {first['message']}")


# %%
#| export
@patch
def summary(self: Diagnosis) -> pd.DataFrame:
    "Findings by kind, the grave ones first."
    found = {kind: self.findings[self.findings['kind'] == kind] for kind in FINDING_KINDS}
    rows = [_summary_row(kind, f) for kind, f in found.items() if len(f)]
    return pd.DataFrame(rows, columns=['kind', 'severity', 'clips', 'known', 'example']).set_index('kind')


# %%
diagnosis.summary().drop(columns='example')


# %%
#| export
def _require_kinds(kinds: Iterable[str]) -> None:
    "Refuse a kind of finding that there is not."
    if unknown := sorted(set(kinds) - set(FINDING_KINDS)):
        raise DataError(f"no kind of finding {', '.join(unknown)}: there are {', '.join(FINDING_KINDS)}")


# %%
#| export
@patch
def skip_list(self: Diagnosis,
              also: Iterable[str] = () # kinds of problems and notes to be left out too, e.g. `['leak', 'short']`
             ) -> dict[str, str]:      # ids and reasons, of clips that were skipped already too
    "What must be left out: missing, unreadable, truncated and silent clips."
    also, found, skipped = list(also), self.findings, self.manifest.skipped
    _require_kinds(also)
    out = ((found['severity'] == 'out') | found['kind'].isin(also)) & found['id'].isin(self.manifest.table['id'])
    reasons = dict(zip(skipped['id'], skipped['reason']))
    for f in found[out].to_dict('records'):
        known = f" (known: {f['known']})" if f['known'] else ''
        reasons.setdefault(f['id'], f"{f['kind']}: {f['message']}{known}")
    return reasons


# %%
left = diagnosis.manifest.skip(diagnosis.skip_list(also=['duplicate', 'short']))
test_eq(len(left) + len(left.skipped), 1000)
test_fail(lambda: diagnosis.skip_list(also=['dull']), contains='no kind of finding dull')
left


# %% [markdown]
# ### In words

# %%
#| export
@patch(as_prop=True)
def problems(self: Diagnosis) -> pd.DataFrame:
    "The findings that are more than notes."
    return self.findings[self.findings['severity'] != 'note']


# %%
#| export
def _kind_line(kind: str, row: pd.Series) -> str: # of the summary
    known = f', {row["known"]:,} of them known' if row['known'] else ''
    return f"  {kind} {row['clips']:,} ({row['severity']}{known}): {row['example']}"


# %%
#| export
def _last_line(manifest: Manifest, skip: dict[str, str]) -> str:
    if not skip: return f'  hash {manifest.hash}; nothing to leave out'
    return f'  hash {manifest.hash}; without the clips to leave out ({len(skip):,}) {manifest.skip(skip).hash}'


# %%
#| export
@patch
def __repr__(self: Diagnosis) -> str:
    n = len(self.examined)
    lines = [repr(self.manifest), f'  examined: {n:,} files, {n - self.measured:,} of them in earlier runs']
    lines += [_kind_line(kind, row) for kind, row in self.summary().iterrows()]
    return '\n'.join([*lines, _last_line(self.manifest, self.skip_list())])


# %%
diagnosis


# %% [markdown]
# For a program, everything as plain values.

# %%
#| export
@patch
def report(self: Diagnosis) -> dict:
    "The diagnosis as JSON has it."
    skip = self.skip_list()
    counts = {kind: int(n) for kind, n in self.summary()['clips'].items()}
    return dict(manifest=self.manifest.summary(), examined=len(self.examined), measured_now=self.measured,
                counts=counts, findings=self.findings.to_dict('records'), leave_out=skip,
                hash_after=self.manifest.skip(skip).hash)


# %%
left = diagnosis.manifest.skip(diagnosis.skip_list())
test_eq(json.loads(json.dumps(diagnosis.report()))['hash_after'], left.hash)
diagnosis.report()['counts']

# %% [markdown]
# ### No list at all
#
# A folder of sounds is examined as it is; a leak between `train` and `test` is found there too.

# %%
for path, seed in {'train/a.wav': 1, 'train/b.wav': 2, 'test/c.flac': 1}.items(): put(f'own/{path}', tone(2, seed))
own = diagnose(scratch/'own', processes=0)
test_eq(own.findings[['kind', 'id']].values.tolist(), [['leak', 'train/a.wav']])
own

# %% [markdown]
# The second time nothing is decoded.

# %%
again = diagnose(scratch/'own', processes=0)
test_eq(again.findings, own.findings)
again.measured

# %%
#| hide
del os.environ['LOGOCENTRIC_HOME']
tempdir.cleanup()
