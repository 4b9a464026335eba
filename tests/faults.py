"""Damaged files by the thousand: how bytes are damaged, what the package makes of them, and processes that outlive it.

A case is a family and a number, which are the seed of all that is random in it. `python tests/faults.py audio 4711`
does that case again, and shows its file, its damage and the whole error."""
import contextlib, faulthandler, io, json, multiprocessing, os, re, resource, shutil, sys, tempfile, time, traceback
import warnings, zlib
from collections import Counter, deque
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import wait
from pathlib import Path
import numpy as np, soundfile as sf, torch
from transformers import GPTNeoConfig, GPTNeoForCausalLM, PreTrainedTokenizerFast
from tokenizers import Tokenizer, models, pre_tokenizers
from logocentric.audio.decoding import Decoded, LengthPolicy, audio_info, load_audio, stream_windows
from logocentric.audio.frontend import FrontendConfig
from logocentric.captioner.model import Captioner
import logocentric.captioner.training_data # noqa: F401, for `calibrate`
from logocentric.core import LogocentricError, set_seed
from logocentric.data.packing import write_shards
from logocentric.data.shards import Shards
from logocentric.data.tables import read_table
from logocentric.encoder.audio_encoder import load_encoder, save_encoder
from logocentric.encoder.mae import MAEConfig, MAEEncoder
from logocentric.reasoner.model import Reasoner

VERDICTS = ('answered', 'refused', 'foreign', 'hung', 'crashed', 'NaN', 'overclaimed')
GOOD = VERDICTS[:2]
SECONDS = 30    # that one case may take
ROOM = 2 << 30  # bytes of address space that a process may have more than it had at its start
RATE = 16_000   # Hz, of what is decoded


# --- damage to bytes: each takes a random generator, the bytes, and bytes of other files of the family

def _stretch(rng, raw, most=4096): # where, and how far
    size = int(min(rng.integers(1, most), len(raw)))
    head = rng.random() < .4 # headers are short, and what they say matters
    return (at := int(rng.integers(min(len(raw) - size, 256 if head else len(raw)) + 1))), at + size


def flip(rng, raw, others):
    "Some bits are others, often in the header."
    new = bytearray(raw)
    for _ in range(int(rng.integers(1, 17))):
        at = int(rng.integers(min(len(new), 200) if rng.random() < .5 else len(new)))
        new[at] ^= 1 << int(rng.integers(8))
    return bytes(new)


def field(rng, raw, others):
    "A number of the header, or any other, is 0, the largest there is, or the most negative."
    size = int(rng.choice([1, 2, 4, 8]))
    at = int(rng.integers(min(len(raw), 128)//2 if rng.random() < .7 else max(len(raw)//2, 1)))*2
    value = [bytes(size), b'\xff'*size, b'\x7f' + b'\xff'*(size - 1), b'\xff'*(size - 1) + b'\x7f',
             b'\x80' + bytes(size - 1), bytes(size - 1) + b'\x80', b'\1' + bytes(size - 1)][rng.integers(7)]
    return raw[:at] + value + raw[at + size:]


def cut(rng, raw, others): return raw[:int(rng.integers(len(raw)))]
def cut_before(rng, raw, others): return raw[int(rng.integers(1, len(raw))):]
def blank(rng, raw, others): a, b = _stretch(rng, raw); return raw[:a] + bytes(b - a) + raw[b:]
def fill(rng, raw, others): a, b = _stretch(rng, raw); return raw[:a] + b'\xff'*(b - a) + raw[b:]
def remove(rng, raw, others): a, b = _stretch(rng, raw); return raw[:a] + raw[b:]
def double(rng, raw, others): a, b = _stretch(rng, raw); return raw[:b] + raw[a:b] + raw[b:]
def garble(rng, raw, others): a, b = _stretch(rng, raw); return raw[:a] + rng.bytes(b - a) + raw[b:]
def insert(rng, raw, others): a, b = _stretch(rng, raw); return raw[:a] + rng.bytes(b - a) + raw[a:]
def join(rng, raw, others): return raw + others[rng.integers(len(others))]
def twice(rng, raw, others): return raw*2
def behind(rng, raw, others): return rng.bytes(int(rng.integers(1, 2000))) + raw


def swap(rng, raw, others):
    "Two blocks have changed places."
    a, b, c = sorted(rng.integers(len(raw) + 1, size=3).tolist())
    return raw[:a] + raw[b:c] + raw[a:b] + raw[c:]


def graft(rng, raw, others):
    "It begins as itself and ends as another."
    other = others[rng.integers(len(others))]
    return raw[:int(rng.integers(len(raw)))] + other[int(rng.integers(len(other))):]


DAMAGE = (flip, flip, field, field, cut, cut, cut_before, blank, fill, remove, double, garble, insert, join, twice,
          behind, swap, graft)


def damaged(rng, raw, others, ways=DAMAGE):
    "Bytes with one, two or three kinds of damage, and what they were."
    done = []
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        way = ways[rng.integers(len(ways))]
        if raw: raw = way(rng, raw, others); done.append(way.__name__)
    return raw, '+'.join(done)


# --- what a case comes to

class Bad(Exception):
    "An answer that must not be: the verdict, and why."


def attempt(*calls):
    "What each call gives, `None` where it is refused; an error of any other kind is raised."
    def one(call):
        try: return call()
        except LogocentricError as e: str(e); return None
    return [one(call) for call in calls]


def finite(x, what):
    if not np.isfinite(np.asarray(x)).all(): raise Bad('NaN', what)
    return x


# --- sounds of every kind that libsndfile writes

SUFFIXES = 'wav mp3 flac ogg opus oga m4a aac mp4 aif aiff aifc au caf w64 rf64 webm wma raw txt WAV bin'.split() + ['']


def _write(format, subtype, rate, channels, seconds=1.3):
    t = np.arange(int(seconds*rate))/rate
    wave = .3*np.sin(2*np.pi*(300 + 200*t)*t) + .02*np.random.default_rng(7).standard_normal(len(t))
    with io.BytesIO() as file:
        sf.write(file, np.stack([wave]*channels, 1), rate, subtype, format=format)
        return file.getvalue()


@cache
def sounds():
    "A sound of every format and encoding: (name, bytes)."
    made = []
    formats = [f for f in sf.available_formats() if f not in ('RAW', 'SD2')] # no header, or one in a file of its own
    for format, subtype in [(f, s) for f in formats for s in sf.available_subtypes(f)]:
        for rate, channels in ((16_000, 1), (22_050, 2)):
            with contextlib.suppress(sf.SoundFileError, ValueError):
                made.append((f'{format}.{subtype}', _write(format, subtype, rate, channels)))
    common = [s for s in made if s[0].split('.')[0] in ('WAV', 'MP3', 'FLAC', 'OGG', 'AIFF')]
    return made + [s for s in common if s[0].split('.')[1] in
                   ('PCM_16', 'PCM_24', 'MPEG_LAYER_III', 'VORBIS', 'OPUS')]*4


class _Forward(sf.SoundFile):
    def seekable(self): return False


def sequential_seconds(path):
    "What libsndfile decodes of a file from its beginning to its end, in one go or in pieces."
    try:
        with _Forward(str(path)) as f: return sum(iter(lambda: len(f.read(2**16, always_2d=True)), 0))/f.samplerate
    except (sf.SoundFileError, TypeError, RuntimeError): return 0.


POLICY = LengthPolicy(window=.5, hop=.5, min_seconds=.1)
SLACK = .02 # s that a claim may be longer than what is decoded


def judge_audio(rng, folder):
    kinds = sounds()
    kind, raw = kinds[rng.integers(len(kinds))]
    raw, ways = damaged(rng, raw, [kinds[i][1] for i in rng.integers(len(kinds), size=3)] + [raw])
    suffix = SUFFIXES[rng.integers(len(SUFFIXES))] if rng.random() < .3 else kind.split('.')[0].lower()
    path = folder/(f'sound.{suffix}' if suffix else 'sound')
    path.write_bytes(raw)
    return f'{kind} as .{suffix}, {ways}', lambda: check_sound(path)


def check_sound(path):
    "What is said of a sound, and what is heard of it, against what is decoded of it."
    found = Decoded()
    info, wave, windows = attempt(lambda: audio_info(path), lambda: load_audio(path),
                                  lambda: list(stream_windows(path, POLICY, RATE, found)))
    decoded, forward = 0. if wave is None else len(finite(wave, 'load_audio'))/RATE, sequential_seconds(path)
    if info and info.duration > (decoded if wave is not None else max(forward, _room(info, path))) + SLACK:
        raise Bad('overclaimed', f'audio_info says {info.duration:.2f} s, load_audio gives {decoded:.2f} s')
    for window, piece in windows or []: check_window(window, piece, wave)
    if windows and found.seconds > decoded + SLACK:
        raise Bad('overclaimed', f'{found.seconds:.2f} s are said to be heard, load_audio gives {decoded:.2f} s')
    if windows and forward - decoded > .2 and not found.notes:
        raise Bad('overclaimed', f'{forward - decoded:.2f} s more can be decoded, and nothing says so')
    return wave is not None


def _room(info, path): # s of numbers that fit into it; they may be refused for being NaN
    size = dict(FLOAT=4, DOUBLE=8).get(info.format.split()[-1])
    return path.stat().st_size/(size*info.channels*info.sample_rate) if size else 0.


def check_window(window, piece, wave):
    finite(piece, f'window {window}')
    start, stop = round(window.start*RATE), round(window.stop*RATE)
    heard = wave[start:stop] if wave is not None else piece[:0]
    if min(len(piece), len(heard)) + SLACK*RATE < stop - start:
        raise Bad('overclaimed', f'window {window}: {len(piece)} samples, of which load_audio gives {len(heard)}')
    n = min(len(piece), len(heard))
    if n and abs(piece[:n] - heard[:n]).max() > 1e-3*max(1, abs(heard).max()):
        raise Bad('overclaimed', f'window {window} holds other samples than load_audio gives there')


# --- tables

ROWS = [dict(path=f'{i}.wav', labels=';'.join(['rock', 'slow'][:1 + i % 2]), text=f'A “calm” tune, no {i}: Füße',
             start=round(.1*i, 1), duration=.5, split=['train', 'test'][i % 2]) for i in range(6)]
TOKENS = ('nan', 'inf', '-inf', '-1', '1e400', '1e308', 'TRUE', 'False', "['rock', 'pop']", '[]', '"', "'", '""', '\t',
          ',', '\0', '\r', '\n', '\ufeff', '\ud800', '\\ud800', '\u2028', 'é'*300, '9'*5000, '../../x.wav',
          '/etc/passwd', 'a\\b.wav', '{', '}', '['*2000, '{"a":'*2000, 'null', 'NaN', 'path', 'start', 'labels',
          ' 0.wav', '0.wav ', '\x1b[2J')


def token(rng, raw, others):
    "A field, or a stretch of it, is something nasty."
    text = TOKENS[rng.integers(len(TOKENS))].encode('utf-8', 'surrogatepass')
    edges = [m.start() for m in re.finditer(rb'[,\t\n":]', raw)] or [0, len(raw)]
    i = int(rng.integers(len(edges)))
    b = edges[min(i + 1, len(edges) - 1)] if rng.random() < .7 else edges[i]
    return raw[:edges[i] + 1] + text + raw[max(b, edges[i] + 1):]


def recode(rng, raw, others):
    "The same text in another encoding, with a mark of it or without."
    name = ['utf-16', 'utf-16-le', 'utf-32', 'cp1252', 'utf-8-sig', 'cp932', 'latin-1'][rng.integers(7)]
    return raw.decode('utf-8', 'replace').encode(name, 'replace')


def lines(rng, raw, others):
    "Lines are in another order, there twice, or end otherwise."
    rows = raw.split(b'\n')
    rows = [rows[i] for i in rng.integers(len(rows), size=len(rows))] if rng.random() < .5 else rows
    return [b'\n', b'\r\n', b'\r', b'\n\n'][rng.integers(4)].join(rows)


@cache
def tables():
    "The same clips as a table of every kind: (suffix, bytes)."
    def delimited(mark):
        quoted = lambda v: '"' + str(v).replace('"', '""') + '"' if mark in str(v) else str(v)
        return '\n'.join(mark.join(map(quoted, row)) for row in [list(ROWS[0]), *(r.values() for r in ROWS)]) + '\n'
    rows = [dict(r, labels=r['labels'].split(';')) for r in ROWS]
    texts = [('csv', delimited(',')), ('tsv', delimited('\t')), ('jsonl', '\n'.join(map(json.dumps, rows)) + '\n'),
             ('jsonl', json.dumps(rows, indent=1))] # the last is one array, and no table
    return [(k, v.encode()) for k, v in texts]


def judge_tables(rng, folder):
    kinds = tables()
    kind, raw = kinds[rng.integers(len(kinds))]
    raw, ways = damaged(rng, raw, [raw for _, raw in kinds], DAMAGE + (token,)*10 + (recode, recode, lines, lines))
    suffix = ['csv', 'tsv', 'json', 'jsonl'][rng.integers(4)] if rng.random() < .1 else kind
    for i in range(6): (folder/f'{i}.wav').touch()
    (folder/f'list.{suffix}').write_bytes(raw)
    return f'{kind} as .{suffix}, {ways}', lambda: check_table(folder/f'list.{suffix}')


def check_table(path):
    "What is read of a table is what a list of clips must be."
    manifest, = attempt(lambda: read_table(path))
    if manifest is None: return False
    repr(manifest), manifest.summary(), json.dumps(manifest.table.to_dict('list'), default=str).encode()
    table = manifest.table
    if len(table) and not (finite(table['start'].astype(float), 'start') >= 0).all(): raise Bad('NaN', 'start below 0')
    lengths = table['duration'].astype(float).dropna()
    if np.isinf(lengths).any() or not (lengths > 0).all(): raise Bad('NaN', f'duration {lengths.tolist()}')
    if table['id'].duplicated().any(): raise Bad('overclaimed', 'clips of the same name')
    attempt(manifest.require)
    return True


# --- models: tiny ones with random weights

def _tokenizer():
    words = [*'a calm deep hum bright high whistle slow fast it is so The music'.split(), '<|endoftext|>']
    plain = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token=words[-1]))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=plain, bos_token=words[-1], eos_token=words[-1])


def _logmels(): return torch.randn(2, 32, 80, generator=torch.Generator().manual_seed(0))*3 - 7


@cache
def model_folders():
    "A captioner, an encoder and a reasoner on disk: kind → folder."
    set_seed(0)
    root, tokenizer = Path(tempfile.mkdtemp(prefix='faults')), _tokenizer()
    size = dict(n_embd=16, n_layer=1, n_head=2, n_positions=64)
    captioner = Captioner.from_parts(MAEConfig.preset('tiny'), size, tokenizer, prefix_length=2)
    captioner.calibrate([_logmels()], ['a calm hum', 'bright whistle']).save_pretrained(root/'captioner')
    save_encoder(MAEEncoder(MAEConfig.preset('tiny')), FrontendConfig(), root/'encoder')
    config = GPTNeoConfig(vocab_size=len(tokenizer), hidden_size=16, num_layers=1, num_heads=2, bos_token_id=14,
                          attention_types=[[['global'], 1]], max_position_embeddings=64, eos_token_id=14)
    Reasoner(GPTNeoForCausalLM(config), tokenizer).save_pretrained(root/'reasoner')
    return {p.name: p for p in sorted(root.iterdir())}


def nasty_value(rng, raw, others):
    "A value of a JSON is another."
    found = list(re.finditer(rb': *("[^"]*"|-?[\d.e+-]+|true|false|null|\[\]|\{\})', raw))
    if not found: return token(rng, raw, others)
    m = found[rng.integers(len(found))]
    values = (b'0', b'-1', b'1e400', b'NaN', b'null', b'"x"', b'[]', b'{}', b'true', b'1000003', b'3.5', b'""',
              b'2305843009213693952', b'"../../etc"', b'[1, 2]', b'"\\ud800"')
    return raw[:m.start(1)] + values[rng.integers(len(values))] + raw[m.end(1):]


def weight(rng, raw, others):
    "Some weights are NaN, infinite or very large."
    value = np.array([np.nan, np.inf, 3e38, -1e30][rng.integers(4)], '<f4').tobytes()
    at = len(raw) - 4*int(rng.integers(1, len(raw)//4 - 500)) if len(raw) > 4000 else 0
    return raw[:at] + value + raw[at + 4:]


def judge_models(rng, folder):
    kinds = list(model_folders())
    kind = kinds[rng.integers(len(kinds))]
    shutil.copytree(model_folders()[kind], folder/kind)
    files = sorted((folder/kind).iterdir())
    path = files[rng.integers(len(files))]
    ways = DAMAGE + ((nasty_value,)*24 if path.suffix == '.json' else (weight,)*6)
    raw, ways = damaged(rng, path.read_bytes(), [p.read_bytes() for p in files], ways)
    path.write_bytes(raw)
    if rng.random() < .03: path.unlink(); ways = 'gone'
    return f'{kind}/{path.name}, {ways}', lambda: CHECK_MODEL[kind](folder/kind)


@torch.inference_mode()
def check_captioner(folder):
    model, = attempt(lambda: Captioner.from_pretrained(folder))
    if model is None: return False
    return attempt(lambda: _told(model))[0] is not None


def _told(model):
    features = finite(model.encode(_logmels()), 'features')
    texts = model.caption(features, max_new_tokens=4)
    finite(model(torch.zeros(2, 1, dtype=torch.long), logmel=_logmels()).logits, 'logits')
    return ' '.join(texts).encode('utf-8', 'surrogatepass')


def check_encoder(folder):
    encoder, = attempt(lambda: load_encoder(folder))
    if encoder is None: return False
    wave = np.random.default_rng(0).standard_normal(RATE//2).astype(np.float32)*.1
    return attempt(lambda: finite(encoder.embed(wave, RATE), 'embedding'))[0] is not None


def check_reasoner(folder):
    reasoner, = attempt(lambda: Reasoner.from_pretrained(folder))
    if reasoner is None: return False
    prompt = 'The music is {description} so it is'
    scores, = attempt(lambda: finite(reasoner.reason(['a calm hum'], ['slow', 'fast'], prompt).values, 'scores'))
    return scores is not None


CHECK_MODEL = dict(captioner=check_captioner, encoder=check_encoder, reasoner=check_reasoner)


# --- shards

@cache
def shard_folder():
    "Seven clips in three shards."
    folder, rng = Path(tempfile.mkdtemp(prefix='faults')), np.random.default_rng(0)
    logmel = lambda: rng.standard_normal((6, 8)).astype(np.float16)
    clips = [dict(id=f'{i}.wav', logmel=logmel(), text=f'Füße {i}', labels=['a'], active=np.ones(6, bool))
             for i in range(7)]
    write_shards(folder/'s', iter(clips), size=3)
    return folder/'s'


def judge_shards(rng, folder):
    shutil.copytree(shard_folder(), folder/'s')
    files = sorted(p for p in (folder/'s').iterdir() if not p.name.startswith('.') and p.name != 'job.json')
    path = files[rng.integers(len(files))]
    ways = DAMAGE + ((nasty_value,)*12 if path.suffix == '.json' else ())
    raw, ways = damaged(rng, path.read_bytes(), [p.read_bytes() for p in files], ways)
    path.write_bytes(raw)
    if hostile := path.suffix == '.tar' and rng.random() < .7: _vouch(folder/'s', path)
    return f'{path.name}, {ways}{", with its checksums" if hostile else ""}', lambda: check_shards(folder/'s')


def _vouch(folder, path): # what a server that means harm would say of a shard
    raw, index, places = path.read_bytes(), json.loads((folder/'index.json').read_text()), np.load(folder/'clips.npy')
    number = [s['name'] for s in index['shards']].index(path.name)
    index['shards'][number]['bytes'] = len(raw)
    (folder/'index.json').write_text(json.dumps(index))
    for i in range(number*3, min(number*3 + 3, 7)): places[i, 2] = zlib.crc32(raw[places[i, 0]:places[i, 1]])
    np.save(folder/'clips.npy', places)


def check_shards(folder):
    shards, = attempt(lambda: Shards(folder, window=2))
    if shards is None: return False
    clips = attempt(*(lambda i=i: shards.clip(i) for i in range(len(shards))))
    for clip in clips:
        if clip: finite(clip['logmel'], clip['id'])
    rest = attempt(lambda: shards.table, lambda: shards.texts, shards.damaged, lambda: shards.features[:2])
    repr(shards), shards.order(0, 0)
    return all(x is not None for x in [*clips, *rest[:3]])


# --- cases

FAMILIES = dict(audio=judge_audio, tables=judge_tables, models=judge_models, shards=judge_shards)


@dataclass
class Outcome:
    family: str
    number: int
    verdict: str
    what: str = '' # the file and its damage
    why: str = ''

    def __str__(self):
        return (f'{self.verdict}: {self.what}: {self.why}\n  again, with its file: '
                f'python tests/faults.py {self.family} {self.number}')


def begin(family, number, folder):
    "Make what is damaged of a case, in an empty folder: what it is, and the check of it."
    return FAMILIES[family](np.random.default_rng([list(FAMILIES).index(family), number]), folder)


def case(family, number, folder):
    "One case in an empty folder."
    what = ''
    try:
        what, check = begin(family, number, folder)
        return Outcome(family, number, 'answered' if check() else 'refused', what)
    except Bad as e: return Outcome(family, number, e.args[0], what, e.args[1])
    except Exception as e: # what no user should meet
        at = traceback.extract_tb(e.__traceback__)[-1]
        why = f'{type(e).__name__}: {str(e)[:300]} ({at.filename}:{at.lineno})'
        return Outcome(family, number, 'foreign', what, why)


# --- processes that a case may hang, kill or fill

def _bytes_mapped(): return int(Path('/proc/self/statm').read_text().split()[0])*resource.getpagesize()


def _work(pipe, cases):
    warnings.simplefilter('ignore'); faulthandler.disable()
    with open(os.devnull, 'r+b') as null:
        for fd in (0, 1, 2): os.dup2(null.fileno(), fd)
    if sys.platform == 'linux': resource.setrlimit(resource.RLIMIT_AS, (_bytes_mapped() + ROOM,)*2)
    for family, number in cases:
        with tempfile.TemporaryDirectory(prefix='fault') as folder: pipe.send(case(family, number, Path(folder)))


class _Worker:
    "A process with some cases."
    def __init__(self, cases):
        self.cases, (self.pipe, theirs) = deque(cases), multiprocessing.Pipe(duplex=False)
        context = multiprocessing.get_context('fork')
        self.process = context.Process(target=_work, args=(theirs, cases), daemon=True)
        self.process.start(); theirs.close()
        self.until = time.monotonic() + SECONDS

    def end(self, verdict, why): # of the case it was at
        self.process.kill(); self.process.join(); self.pipe.close()
        return Outcome(*self.cases.popleft(), verdict, why=why)


def _take(worker): # what has come of it
    try: outcome = worker.pipe.recv()
    except (EOFError, OSError):
        worker.process.join()
        return worker.end('crashed', f'exit code {worker.process.exitcode}')
    worker.cases.popleft(); worker.until = time.monotonic() + SECONDS
    return outcome


def outcomes(cases, processes=1, chunk=50):
    "Do cases, each chunk of them in a process of its own; what each came to."
    left, running, found = deque(cases), [], []
    while left or running:
        while left and len(running) < processes:
            running.append(_Worker([left.popleft() for _ in range(min(chunk, len(left)))]))
        ready = wait([w.pipe for w in running], timeout=1)
        for w in list(running):
            if w.pipe in ready: found.append(_take(w))
            elif time.monotonic() > w.until: found.append(w.end('hung', f'more than {SECONDS} s'))
            if not w.cases and not w.pipe.closed: w.process.join(); w.pipe.close()
            if w.pipe.closed: running.remove(w); left.extendleft(reversed(w.cases))
    return found


def counts(found):
    "How many cases of each family came to what, as a table."
    by = Counter((o.family, o.verdict) for o in found)
    rows = [[f, *(by[f, v] for v in VERDICTS)] for f in FAMILIES]
    return '\n'.join(f'{row[0]:8}' + ''.join(f'{x:>12}' for x in row[1:]) for row in [['', *VERDICTS], *rows])


def prepare():
    "Make all that is damaged later, once for all processes."
    sounds(), tables(), model_folders(), shard_folder()


if __name__ == '__main__':
    folder = Path(tempfile.mkdtemp(prefix='fault'))
    what, check = begin(sys.argv[1], int(sys.argv[2]), folder)
    print(what, *sorted(folder.rglob('*')), sep='\n')
    print('answered' if check() else 'refused')
