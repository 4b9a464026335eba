"Decoding against soxr, files that lie, broken files, long files and real recordings; the length policy."
import os, pickle, random, struct, sys, tracemalloc
import numpy as np, pytest, soundfile as sf, soxr
from logocentric.audio import formats
from logocentric.audio.decoding import (CANCEL_SHARE, RATES, Decoded, LengthPolicy, as_audio, audio_info,
                                        check_decoding, load_audio, stream_audio, stream_windows)
from logocentric.audio.formats import AudioError, frame_bytes, sound_format
from logocentric.core import LogocentricError, shared_path

RATE = 16_000
RECORDINGS = shared_path() and shared_path()/'data'/'recordings'
needs_recordings = pytest.mark.skipif(not (RECORDINGS and RECORDINGS.is_dir()),
                                      reason='the folder of real recordings is not there')


def seconds(n, rate=RATE): return np.arange(round(n*rate))/rate

def music(n=2., rate=RATE):
    "A chord, a glide and a little noise: something everywhere below 7 kHz."
    t = seconds(n, rate)
    x = sum(np.sin(2*np.pi*f*t)/8 for f in (110, 261.6, 1000.5, 3333)) + .2*np.sin(2*np.pi*(100*t + 1500*t**2/n))
    return np.float32(x + .01*np.random.default_rng(0).standard_normal(len(t)))


# --- decoding ---------------------------------------------------------------------------------------------------------
FORMATS = [('wav', 'PCM_U8'), ('wav', 'PCM_16'), ('wav', 'PCM_24'), ('wav', 'PCM_32'), ('wav', 'FLOAT'),
           ('wav', 'DOUBLE'), ('wav', 'ULAW'), ('aiff', 'PCM_16'), ('au', 'PCM_16'), ('flac', 'PCM_16'),
           ('flac', 'PCM_24'), ('ogg', 'VORBIS'), ('opus', 'OPUS'), ('mp3', 'MPEG_LAYER_III')]

def write(path, wave, rate, subtype, channels=1, **kwargs):
    kind = dict(opus='OGG').get(path.suffix[1:], path.suffix[1:].upper())
    sf.write(path, np.stack([wave*(1 + c)/channels for c in range(channels)], 1), rate, subtype, format=kind, **kwargs)
    return path

def reference(path):
    "Decode, mix and resample all at once."
    samples, rate = sf.read(path, dtype='float32', always_2d=True)
    return soxr.resample(samples.mean(1), rate, RATE)

@pytest.mark.parametrize('suffix,subtype', FORMATS)
@pytest.mark.parametrize('channels', [1, 2])
def test_formats(tmp_path, suffix, subtype, channels):
    rate = 48_000 if subtype == 'OPUS' else 44_100
    path = write(tmp_path/f'a.{suffix}', music(2, rate), rate, subtype, channels)
    whole, expected = load_audio(path), reference(path)
    assert whole.dtype == np.float32 and abs(len(whole) - 2*RATE) < 2
    np.testing.assert_allclose(whole, expected[:len(whole)], atol=1e-5)
    np.testing.assert_allclose(load_audio(path, 1.1, .5), expected[17_600:25_600], atol=1e-5)

@pytest.mark.parametrize('rate', [4_000, 8_000, 11_025, 16_000, 22_050, 32_000, 44_101, 48_000, 96_000, 192_000])
def test_rates(tmp_path, rate):
    path = write(tmp_path/'a.wav', music(3, rate), rate, 'FLOAT', 6)
    expected = reference(path)
    np.testing.assert_allclose(load_audio(path), expected, atol=1e-5)
    for start, duration in ((0, .02), (.3, 1), (1.23456, .77), (2.5, 9)):
        part = load_audio(path, start, duration)
        np.testing.assert_allclose(part, expected[round(start*RATE):round((start + duration)*RATE)], atol=1e-5)

@pytest.mark.parametrize('level', [0., .5, .99])
def test_mp3_parts_at_any_bit_rate(tmp_path, level, capfd):
    path = write(tmp_path/'a.mp3', music(6, 44_100), 44_100, 'MPEG_LAYER_III', compression_level=level)
    expected = reference(path)
    capfd.readouterr()
    np.testing.assert_allclose(load_audio(path), expected, atol=1e-5)
    np.testing.assert_allclose(load_audio(path, 3.21, 1), expected[51_360:67_360], atol=1e-5)
    assert audio_info(path).duration == pytest.approx(6)
    assert capfd.readouterr().err == ''

@pytest.mark.parametrize('block', [.01, .37, 10])
def test_stream_has_no_seams(tmp_path, block):
    path = write(tmp_path/'a.ogg', music(3, 44_100), 44_100, 'VORBIS', 2)
    blocks = list(stream_audio(path, block))
    assert {len(b) for b in blocks[:-1]} <= {round(block*RATE)}
    np.testing.assert_array_equal(np.concatenate(blocks), load_audio(path))

def sparse_wav(path, hours, rate):
    "A WAV of silence that takes no room on the disk, with a second of noise in its ninth hour."
    size = hours*3600*rate*2
    with open(path, 'wb') as f:
        f.write(struct.pack('<4sI4s4sIHHIIHH4sI', b'RIFF', size + 36, b'WAVE', b'fmt ', 16, 1, 1, rate, 2*rate, 2, 16,
                            b'data', size))
        f.seek(44 + 9*3600*rate*2)
        f.write(np.random.default_rng(0).integers(-2**14, 2**14, rate, dtype=np.int16).tobytes())
        f.truncate(44 + size)
    return path

def test_ten_hours_in_bounded_memory(tmp_path):
    path = sparse_wav(tmp_path/'long.wav', 10, 2000)
    tracemalloc.start()
    total = sum(len(b) for b in stream_audio(path, 10, 1000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 36_000_000 and peak < 5e6

def test_a_part_of_ten_hours(tmp_path):
    path = sparse_wav(tmp_path/'long.wav', 10, 44_100)
    tracemalloc.start()
    part = load_audio(path, 9*3600 - 1, 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    loud = abs(part.reshape(3, RATE)).mean(1)
    assert loud[1] > .1 and loud[0] < .001 and loud[2] < .001 and peak < 5e6
    assert audio_info(path).duration == 36_000
    assert LengthPolicy().coverage(36_000) == 'heard 0.0–36000.0 s in 3600 windows, 0.0 s dropped'


# --- what is broken ---------------------------------------------------------------------------------------------------
def refused(path, match):
    for read in (load_audio, lambda p: list(stream_audio(p)), lambda p: list(stream_windows(p))):
        with pytest.raises(AudioError, match=match) as e: read(path)
        assert str(path) in str(e.value) and e.value.path == str(path)
        assert str(pickle.loads(pickle.dumps(e.value))) == str(e.value)

def cut(path, part):
    content = path.read_bytes()
    path.write_bytes(content[:int(len(content)*part)])
    return path

def test_missing(tmp_path): refused(tmp_path/'no.wav', 'no such file')
def test_folder(tmp_path): refused(tmp_path, 'is not a file')

def test_empty(tmp_path):
    (tmp_path/'a.wav').touch()
    refused(tmp_path/'a.wav', 'empty')

def test_zero_length(tmp_path):
    sf.write(tmp_path/'a.wav', np.zeros(0), RATE)
    refused(tmp_path/'a.wav', 'no samples')

@pytest.mark.parametrize('name', ['a.mp3', 'a.wav', 'a.txt', 'a.raw', 'a.flac'])
def test_not_audio(tmp_path, name):
    (tmp_path/name).write_bytes(b'All the world is a stage. '*1000)
    refused(tmp_path/name, 'not a sound file')

@pytest.mark.parametrize('head', [b'\0\0\0\x20ftypM4A ', b'\xff\xf1\x50\x80', b'\xff\xf9\x50\x80', b'\x1aE\xdf\xa3'])
def test_aac_and_webm_name_the_cure(tmp_path, head, monkeypatch):
    monkeypatch.setenv('PATH', '')
    path = tmp_path/'my song.m4a'
    path.write_bytes(head + bytes(1000))
    refused(path, 'ffmpeg -i .*my song.m4a')

@pytest.mark.parametrize('suffix,subtype', [f for f in FORMATS if f[0] in ('wav', 'aiff', 'au', 'flac', 'mp3')])
@pytest.mark.parametrize('part', [.1, .5, .9])
def test_truncated(tmp_path, suffix, subtype, part):
    refused(cut(write(tmp_path/f'a.{suffix}', music(4), RATE, subtype), part), 'truncated or damaged|not a sound file')

@pytest.mark.parametrize('suffix,subtype', [('ogg', 'VORBIS'), ('opus', 'OPUS')])
def test_truncated_ogg_is_read_as_far_as_it_goes(tmp_path, suffix, subtype):
    path = cut(write(tmp_path/f'a.{suffix}', music(20), RATE, subtype), .7)
    assert 8 < audio_info(path).duration < 18
    assert len(load_audio(path)) == pytest.approx(audio_info(path).duration*RATE, abs=2)

@pytest.mark.parametrize('riff,data', [(0xffffffff, 0xffffffff), (0x7ffff024, 0x7ffff000)])
def test_wav_written_to_a_pipe(tmp_path, riff, data):
    path = write(tmp_path/'a.wav', music(2), RATE, 'PCM_16')
    content = bytearray(path.read_bytes())
    content[4:8], content[40:44] = struct.pack('<I', riff), struct.pack('<I', data)
    path.write_bytes(content)
    assert len(load_audio(path)) == 2*RATE and audio_info(path).duration == 2

def test_flac_written_to_a_pipe(tmp_path):
    path = write(tmp_path/'a.flac', music(2), RATE, 'PCM_16')
    content = bytearray(path.read_bytes())
    content[21] &= 0xf0; content[22:26] = bytes(4)  # the 36 bits of STREAMINFO that hold the number of samples
    path.write_bytes(content)
    assert len(load_audio(path)) == 2*RATE and audio_info(path).duration == 2
    assert len(load_audio(path, 1.5)) == RATE//2

@pytest.mark.parametrize('value,said', [(np.nan, 'NaN or infinite'), (np.inf, 'NaN or infinite'),
                                        (-np.inf, 'NaN or infinite'), (1e30, 'absurdly large'), (-101, 'divide them')])
def test_samples_that_are_no_numbers(tmp_path, value, said):
    wave = music(); wave[12_345] = value
    sf.write(tmp_path/'a.wav', np.stack([music(), wave], 1), RATE, 'FLOAT')
    refused(tmp_path/'a.wav', said)
    with pytest.raises(AudioError, match='microphone'): as_audio(wave, RATE, name='microphone')

def test_a_part_beyond_the_end(tmp_path):
    path = write(tmp_path/'a.wav', music(2), RATE, 'PCM_16')
    with pytest.raises(AudioError, match='no sound at 5 s'): load_audio(path, 5)
    with pytest.raises(LogocentricError): load_audio(path, -1)
    with pytest.raises(LogocentricError): load_audio(path, 0, 0)

def test_damaged_mp3_loses_a_moment_only(tmp_path):
    path = write(tmp_path/'a.mp3', music(10, 44_100), 44_100, 'MPEG_LAYER_III', compression_level=0.)
    expected = load_audio(path)
    content = bytearray(path.read_bytes())
    content[len(content)//2:len(content)//2 + 600] = b'x'*600
    path.write_bytes(content)
    found = load_audio(path)
    assert abs(len(found) - len(expected)) < .1*RATE and np.isfinite(found).all()
    np.testing.assert_allclose(found[:4*RATE], expected[:4*RATE], atol=1e-5)


# --- files that lie ---------------------------------------------------------------------------------------------------
def mp3(path, wave, rate=22_050, mode='VARIABLE', level=.5, counted=True):
    "An MP3, with or without the frame that counts the others."
    sf.write(path, wave, rate, 'MPEG_LAYER_III', format='MP3', bitrate_mode=mode, compression_level=level)
    content = path.read_bytes()
    if not counted: path.write_bytes(content[frame_bytes(content):])
    return path

def changing(n=6., rate=22_050):
    "Silence, then noise: its first bit rate says nothing about the others."
    x = np.random.default_rng(0).normal(0, .2, round(n*rate)).clip(-1, 1)
    return np.float32(x*(seconds(n, rate) > n/2))

def decoded(path, **kwargs):
    found = Decoded()
    return load_audio(path, found=found, **kwargs), found

def correlation(a, b): return float(np.corrcoef(a, b)[0, 1])

@pytest.mark.parametrize('mode', ['VARIABLE', 'AVERAGE', 'CONSTANT'])
def test_an_mp3_that_nobody_counted_is_read_to_its_end(tmp_path, mode):
    counted, path = (mp3(tmp_path/f'{c}.mp3', changing(), mode=mode, counted=c) for c in (True, False))
    if mode == 'VARIABLE': assert abs(sf.info(path).duration - 6) > 1 # as libsndfile guesses
    found = check_decoding(path)
    assert found.seconds == audio_info(path).duration == pytest.approx(6, abs=.1) and found.notes == []
    whole, late = load_audio(counted, sample_rate=22_050), load_audio(path, sample_rate=22_050)
    best = max(correlation(whole[100_000:130_000], late[at:][100_000:130_000]) for at in range(0, 1500))
    assert best > .999 # the same sound, later by the encoder's delay

def test_the_rest_of_an_mp3_that_counts_too_few_frames_is_read(tmp_path):
    path = mp3(tmp_path/'a.mp3', changing())
    content = bytearray(path.read_bytes())
    at = content.find(b'Xing') + 8
    content[at:at + 4] = struct.pack('>I', 50)
    path.write_bytes(content)
    assert check_decoding(path).seconds == pytest.approx(6, abs=.15)

JOINED = [('mp3', 'MPEG_LAYER_III'), ('ogg', 'VORBIS'), ('ogg', 'OPUS'), ('flac', 'PCM_16'), ('wav', 'PCM_16'),
          ('wav', 'GSM610'), ('aiff', 'PCM_16'), ('au', 'PCM_16'), ('w64', 'PCM_16'), ('caf', 'PCM_16'),
          ('rf64', 'PCM_16')]

@pytest.mark.parametrize('suffix,subtype', JOINED)
def test_recordings_that_lie_one_behind_the_other_are_all_read(tmp_path, suffix, subtype):
    rate = dict(OPUS=48_000, GSM610=8_000).get(subtype, RATE)
    one, two = (write(tmp_path/f'{n}.{suffix}', music(n, rate), rate, subtype) for n in (1, 2))
    path = tmp_path/f'joined.{suffix}'
    path.write_bytes(one.read_bytes() + two.read_bytes())
    whole, found = decoded(path, sample_rate=rate)
    np.testing.assert_array_equal(whole, np.concatenate([load_audio(p, sample_rate=rate) for p in (one, two)]))
    assert found.seconds == pytest.approx(3, abs=.1) and '2 pieces of sound' in found.notes[0]
    assert check_decoding(path) == found
    np.testing.assert_allclose(load_audio(path, 1.5, 1), load_audio(path)[24_000:40_000], atol=1e-6)

@pytest.mark.parametrize('tag', [b'', b'TAG' + bytes(125), b'ID3\4\0\0\0\0\x14\0' + bytes(2560)])
def test_mp3_files_of_two_rates_and_with_tags_between(tmp_path, tag):
    one = mp3(tmp_path/'1.mp3', music(2, 22_050), counted=False).read_bytes()
    two = mp3(tmp_path/'2.mp3', music(3, 44_100), 44_100, counted=False).read_bytes()
    path = tmp_path/'a.mp3'
    path.write_bytes(one + tag + two)
    found = check_decoding(path)
    assert found.seconds == pytest.approx(5, abs=.2) and '2 pieces' in found.notes[0]
    assert correlation(load_audio(path)[-RATE:], load_audio(tmp_path/'2.mp3')[-RATE:]) > .999

def half_counted(path, share=.5):
    "The header of a file says that there is half as much sound."
    content, kind = bytearray(path.read_bytes()), path.suffix[1:]
    if kind == 'flac':
        content[22:26] = struct.pack('>I', int(struct.unpack('>I', content[22:26])[0]*share))
    else:
        mark, skip, code = dict(wav=(b'data', 4, '<I'), aiff=(b'SSND', 4, '>I'), au=(b'.snd', 8, '>I'),
                                caf=(b'data', 4, '>Q'), rf64=(b'ds64', 16, '<Q'))[kind]
        at = content.find(mark) + skip
        struct.pack_into(code, content, at, int(struct.unpack_from(code, content, at)[0]*share))
    path.write_bytes(content)
    return path

@pytest.mark.parametrize('suffix', ['wav', 'aiff', 'au', 'caf', 'rf64', 'flac'])
def test_sound_that_a_header_does_not_count_is_decoded_and_named(tmp_path, suffix):
    path = write(tmp_path/f'a.{suffix}', music(4), RATE, 'PCM_16')
    whole = load_audio(path)
    found = check_decoding(half_counted(path))
    np.testing.assert_array_equal(load_audio(path), whole)
    assert found.seconds == audio_info(path).duration == 4
    assert found.notes == ['its header counts 2.0 s; 2.0 s more lie behind, and were decoded too']

@pytest.mark.parametrize('tail', [b'LIST\x08\0\0\0INFOabcd', b'id3 \x0a\0\0\0ID3\4\0\0\0\0\0\0', b'TAG' + bytes(125),
                                  bytes(4000), b'\0LIST\x04\0\0\0INFO', b'bext\x10\x27\0\0' + bytes(10_000)])
def test_what_is_no_sound_behind_a_wav_is_not_heard(tmp_path, tail):
    path = write(tmp_path/'a.wav', music(2), RATE, 'PCM_16')
    path.write_bytes(path.read_bytes() + tail)
    found = check_decoding(path)
    assert found.seconds == 2 and found.notes == []

@pytest.mark.parametrize('counted', [True, False])
def test_what_is_no_sound_behind_an_mp3_is_named(tmp_path, counted):
    path = mp3(tmp_path/'a.mp3', changing(2), counted=counted)
    path.write_bytes(path.read_bytes() + np.random.default_rng(0).bytes(20_000))
    found = check_decoding(path)
    assert found.seconds == pytest.approx(2, abs=.1) and found.notes == ['20,000 bytes of the file are no sound']

@pytest.mark.parametrize('subtype', ['GSM610', 'IMA_ADPCM', 'MS_ADPCM'])
def test_encodings_that_cannot_be_sought_are_read_forward(tmp_path, subtype):
    path = write(tmp_path/'a.wav', music(2, 8_000), 8_000, subtype)
    expected = reference(path)
    np.testing.assert_allclose(load_audio(path), expected, atol=1e-5)
    np.testing.assert_allclose(load_audio(path, 1, .5), expected[RATE:RATE*3//2], atol=1e-5)
    check_decoding(path)

@pytest.mark.parametrize('hole', [100, 600, 6_000, 20_000])
def test_of_a_damaged_mp3_no_more_is_claimed_than_was_decoded(tmp_path, hole):
    "And its windows are where reading in order finds them."
    path = mp3(tmp_path/'a.mp3', music(8, 22_050), counted=False)
    content = bytearray(path.read_bytes())
    content[20_000:20_000 + hole] = np.random.default_rng(1).bytes(hole)
    path.write_bytes(content)
    found = check_decoding(path, LengthPolicy(window=1., hop=.7, min_seconds=.2))
    assert found.notes and 8 - hole/2_000 < found.seconds < 8.1
    np.testing.assert_allclose(load_audio(path, 2, .5), load_audio(path)[2*RATE:2*RATE + RATE//2], atol=1e-5)

CLAIMS = 'were claimed', 'its windows are', 'the window at' # that `check_decoding` finds wrong

def mutated(content, chance):
    "A file after an accident."
    content, at = bytearray(content), chance.randrange(len(content))
    kind, n = chance.choice(['flip', 'head', 'cut', 'insert', 'zero', 'block']), chance.choice([1, 30, 3000])
    if kind == 'cut': return content[:at]
    if kind == 'head': at, kind = chance.randrange(80), 'flip'
    if kind == 'flip': content[at] = chance.randrange(256)
    elif kind == 'insert': content[at:at] = chance.randbytes(n)
    else: content[at:at + n] = bytes(n) if kind == 'zero' else chance.randbytes(n)
    return content

@pytest.mark.parametrize('suffix,subtype', JOINED)
def test_mutated_files_are_decoded_as_claimed_or_refused(tmp_path, suffix, subtype):
    rate, chance = dict(OPUS=48_000, GSM610=8_000).get(subtype, RATE), random.Random(suffix)
    content = write(tmp_path/f'a.{suffix}', music(1, rate), rate, subtype).read_bytes()
    for n in range(12):
        path = tmp_path/f'{n}.{suffix}'
        path.write_bytes(mutated(content*(1 + n % 2), chance))
        try: check_decoding(path, LengthPolicy(window=.5, hop=.4, min_seconds=.1))
        except AudioError as e: assert not any(w in e.reason for w in CLAIMS), n


# --- content decides --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('name', ['a.m4a', 'a.mp3', 'a.gsm', 'a.raw', 'a', 'a.txt'])
def test_a_wav_is_a_wav_whatever_it_is_called(tmp_path, name):
    path = write(tmp_path/'a.wav', music(1), RATE, 'PCM_16')
    whole = load_audio(path)
    path = path.rename(tmp_path/name)
    np.testing.assert_array_equal(load_audio(path), whole)
    assert sound_format(path) == 'WAV' and audio_info(path).format == 'WAV PCM_16'

@pytest.mark.parametrize('name', ['a.gsm', 'a.vox', 'a.au', 'a.snd', 'a.m4a', 'a.webm'])
def test_a_text_is_no_sound_whatever_it_is_called(tmp_path, name):
    (tmp_path/name).write_bytes(b'All the world is a stage. '*1000)
    refused(tmp_path/name, 'not a sound file')
    assert sound_format(tmp_path/name) is None

def test_formats_are_told_by_their_first_bytes(tmp_path):
    for suffix, name in dict(wav='WAV', aiff='AIFF', au='AU', flac='FLAC', ogg='OGG', mp3='MP3', caf='CAF', w64='W64',
                             rf64='RF64').items():
        path = write(tmp_path/f'a.{suffix}', music(1), RATE, None)
        assert sound_format(path) == name
        path.write_bytes(b'ID3\4\0\0\0\0\x01\0' + bytes(128) + path.read_bytes())
        assert sound_format(path) == name and check_decoding(path).seconds == pytest.approx(1, abs=.1)
    heads = dict(M4A=b'\0\0\0\x20ftypM4A ', WEBM=b'\x1aE\xdf\xa3', AAC=b'\xff\xf1\x50\x80',
                 WMA=bytes.fromhex('3026b2758e66cf11'))
    for name, head in heads.items():
        (tmp_path/'b').write_bytes(head + bytes(100))
        assert sound_format(tmp_path/'b') == name
    for head in (b'\0\0\0\x20ftypheic', 'RIFF'.encode('utf-16'), b'', b'ID', b'\xff\xfb\x90\x00' + bytes(500)):
        (tmp_path/'b').write_bytes(head)
        assert sound_format(tmp_path/'b') is None
    assert sound_format(tmp_path) is None and sound_format(tmp_path/'no') is None

def test_names_that_are_no_text_and_too_long(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b'/\xff\xfe.wav')
    os.rename(write(tmp_path/'a.wav', music(1), RATE, 'PCM_16'), path)
    assert check_decoding(path).seconds == 1
    for name in ('x'*5000, 'a\0b'):
        with pytest.raises(AudioError, match='no such file'): load_audio(tmp_path/name)

STUB = """#!{python} -S
import array, math, struct, sys, time
open({log!r}, 'w').write('\\n'.join(sys.argv[1:]))
{before}
out = sys.stdout.buffer
out.write(struct.pack('>4s5I', b'.snd', 32, 0xffffffff, 6, 22050, 2) + bytes(8))
x = array.array('f', [.5*math.sin(i//2/10)*(1 - i % 2/2) for i in range(2*22050)])
x.byteswap()
out.write(x.tobytes() + b'xy')
out.flush()
{after}
"""

@pytest.fixture
def ffmpeg(tmp_path, monkeypatch):
    "A stand-in on the path that writes a second of a tone; what it does before and after, and what it was asked."
    program, log = tmp_path/'bin'/'ffmpeg', tmp_path/'asked'
    program.parent.mkdir()
    monkeypatch.setenv('PATH', str(program.parent))
    def put(before='', after=''):
        program.write_text(STUB.format(python=sys.executable, log=str(log), before=before, after=after))
        program.chmod(0o755)
        path = tmp_path/"it's.sound"
        path.write_bytes(b'\0\0\0\x20ftypM4A ' + bytes(100))
        return path, log
    return put

def test_ffmpeg_decodes_what_nobody_else_does(ffmpeg):
    path, log = ffmpeg()
    expected = np.outer(.5*np.sin(np.arange(22_050)/10), [1, .5])
    found = Decoded()
    wave = load_audio(path, sample_rate=22_050, found=found)
    np.testing.assert_allclose(wave, expected.mean(1), atol=1e-6)
    assert found == Decoded(1., ['it was decoded by ffmpeg'], 22_050, 2, 'M4A by ffmpeg')
    asked = log.read_text().split('\n')
    for pair in (['-protocol_whitelist', 'file,pipe'], ['-f', 'mov'], ['-i', f'file:{path}'], ['-t', '86400']):
        assert pair in [asked[i:i + 2] for i in range(len(asked))]
    assert asked.index('mov') < asked.index(f'file:{path}') and audio_info(path).duration == 1
    np.testing.assert_array_equal(load_audio(path, .6, .2, 22_050), wave[13_230:17_640])

def test_what_ffmpeg_says_is_passed_on(ffmpeg, monkeypatch):
    path, _ = ffmpeg("sys.stderr.write('moov atom not found\\n'); sys.exit(1)")
    refused(path, 'ffmpeg cannot decode it: moov atom not found')
    path, _ = ffmpeg(after="sys.stderr.write('Error in a packet\\n')")
    assert 'the decoder complained of damage 1 times: moments may be missing' in check_decoding(path).notes
    monkeypatch.setattr(formats, 'FFMPEG_PATIENCE', .2)
    path, _ = ffmpeg('time.sleep(60)')
    with pytest.raises(AudioError, match='gave no sound for 0.2 s, and was stopped'): load_audio(path)


# --- channels, scales and rates ---------------------------------------------------------------------------------------
def opposite(n=2., seed=0):
    "Two channels that cancel, up to the rounding of 16 bits."
    x = np.random.default_rng(seed).normal(0, .1, round(n*RATE))
    return np.stack([x, -x*.9999], 1)

def test_channels_that_cancel_are_named(tmp_path):
    sf.write(tmp_path/'a.wav', opposite(), RATE)
    wave, found = decoded(tmp_path/'a.wav')
    assert abs(wave).max() < 1e-3 and len(found.notes) == 1
    assert 'its channels cancel: their mean, which is what was heard' in found.notes[0]
    assert check_decoding(tmp_path/'a.wav').notes == found.notes
    found = Decoded()
    as_audio(opposite(), RATE, found=found)
    assert 'its channels cancel' in found.notes[0] and found.seconds == 2

@pytest.mark.parametrize('channels', [1, 2, 6])
def test_independent_channels_do_not_cancel(tmp_path, channels):
    sf.write(tmp_path/'a.wav', np.random.default_rng(0).normal(0, .1, (RATE, channels)), RATE)
    assert decoded(tmp_path/'a.wav')[1].notes == [] and CANCEL_SHARE < 1/6

@pytest.mark.parametrize('samples', [
    [0, 1000, -20_000], np.array([[0, 1000], [2000, -20_000]]), np.array([0, 30_000], np.int32),
    np.array([32_768, 60_000], np.uint16), np.array([1, 2], np.uint32), np.array([True, False]), np.array([1j, 2]),
    np.array(['a', 'b']), [None, None], [[1., 2.], [3.]], np.array([0., 20_000.]), np.array([0, 101.], np.float16)])
def test_samples_without_a_scale_are_refused(samples):
    with pytest.raises(AudioError, match='whose scale is unknown|fit into 16 bits|absurdly large|no array of samples'):
        as_audio(samples, RATE)

def test_samples_with_a_scale_are_taken():
    assert np.allclose(as_audio([0., .5, -1.5], RATE), [0, .5, -1.5])
    assert np.allclose(as_audio(np.array([0, 2**30], np.int32), RATE), [0, .5])
    assert not as_audio(np.zeros(10, np.int32), RATE).any()

@pytest.mark.parametrize('rate', [0, -1, 1, 999, 768_001, float('nan'), float('inf'), None, 'fast', [RATE, 1]])
def test_rates_that_no_recorder_uses_are_refused(tmp_path, rate):
    with pytest.raises(AudioError, match='sample rate'): as_audio(music(), rate)
    if isinstance(rate, int) and rate > 0:
        sf.write(tmp_path/'a.wav', music(), rate)
        refused(tmp_path/'a.wav', f'has a sample rate of {rate} Hz; recorders use 1,000 to 768,000 Hz')
        with pytest.raises(AudioError, match='sample rate'): audio_info(tmp_path/'a.wav')

def test_the_slowest_rate_and_many_channels_in_bounded_memory(tmp_path):
    sf.write(tmp_path/'slow.wav', np.zeros(600_000, np.int16), RATES[0])
    sf.write(tmp_path/'wide.wav', np.zeros((4_000, 500), np.int16), RATE)
    tracemalloc.start()
    assert sum(len(x) for x in stream_audio(tmp_path/'slow.wav')) == 600*RATE
    assert sum(len(x) for x in stream_audio(tmp_path/'wide.wav')) == 4_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6


# --- real recordings --------------------------------------------------------------------------------------------------
@needs_recordings
@pytest.mark.parametrize('name,duration', [('Gold Rush', 2295936/48000), ('Krampus Workshop', 4177152/44100)])
def test_mp3_whose_header_is_wrong(name, duration, capfd):
    "One has a cover picture that its estimated length counts as music, the other a damaged frame."
    path = RECORDINGS/'incompetech'/f'{name}.mp3'
    assert audio_info(path).duration == duration
    whole = load_audio(path)
    assert len(whole) == pytest.approx(duration*RATE, abs=1)
    np.testing.assert_allclose(load_audio(path, 20, 5), whole[20*RATE:25*RATE], atol=1e-5)
    assert capfd.readouterr().err == ''



# --- the length policy ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('policy', [LengthPolicy(), LengthPolicy(hop=5.), LengthPolicy(min_seconds=20.),
                                    LengthPolicy(window=3., hop=.7, min_seconds=0.)])
def test_windows_cover_the_sound(policy):
    for length in [.02, 1, 9.99, 10, 10.5, 11, 20, 29.97, 30, 61.3, *np.random.default_rng(0).uniform(.01, 100, 50)]:
        found = policy.windows(length)
        assert found[0].start == 0 and all(0 < w.stop - w.start <= policy.window + 1e-9 for w in found)
        assert all(b.start <= a.stop and b.stop > a.stop for a, b in zip(found, found[1:]))
        assert 0 <= length - found[-1].stop < max(policy.min_seconds, 1e-6)
        assert f'in {len(found)} window' in policy.coverage(length)

def test_no_empty_window_at_an_exact_multiple():
    assert LengthPolicy().windows(30) == [(0, 10), (10, 20), (20, 30)]
    assert len(LengthPolicy(window=.3, hop=.1, min_seconds=0.).windows(.9)) == 7

@pytest.mark.parametrize('seconds,line', [
    (30, 'heard 0.0–30.0 s in 3 windows, 0.0 s dropped'), (10, 'heard 0.0–10.0 s in 1 window, 0.0 s dropped'),
    (10.04, 'heard 0.0–10.0 s in 1 window, 0.04 s dropped'), (.02, 'heard 0.0–0.02 s in 1 window, 0.0 s dropped')])
def test_coverage(seconds, line): assert LengthPolicy().coverage(seconds) == line

def test_bad_policies():
    for bad in (dict(hop=11.), dict(hop=0.), dict(aggregate='median')):
        with pytest.raises(LogocentricError): LengthPolicy(**bad)
    with pytest.raises(LogocentricError): LengthPolicy().windows(0)

@pytest.mark.parametrize('policy', [LengthPolicy(window=2., hop=2.), LengthPolicy(window=2., hop=.5, min_seconds=0.)])
def test_windows_are_cut_from_what_load_audio_reads(tmp_path, policy):
    path = write(tmp_path/'a.mp3', music(7.3, 44_100), 44_100, 'MPEG_LAYER_III')
    whole, found = load_audio(path), list(stream_windows(path, policy))
    assert [w for w, _ in found] == policy.windows(audio_info(path).duration)
    for window, wave in found:
        np.testing.assert_array_equal(wave, whole[round(window.start*RATE):round(window.stop*RATE)])


@pytest.mark.parametrize('policy', [LengthPolicy(window=1., hop=1.), LengthPolicy(window=1., hop=.4, min_seconds=.1),
                                    LengthPolicy(window=1., hop=1., min_seconds=3.), LengthPolicy(1., .3, 16, 0.)])
@pytest.mark.parametrize('length', [.02, .3, 1, 1.05, 2, 3.14159, 4, 5.99])
def test_windows_are_decided_by_what_was_decoded(tmp_path, policy, length):
    "As the policy decides them that knows the length; and in the meantime little is held."
    sf.write(tmp_path/'a.flac', music(length, 11_025), 11_025)
    found = Decoded()
    windows = list(stream_windows(tmp_path/'a.flac', policy, found=found))
    assert [w for w, _ in windows] == policy.windows(found.seconds) and found.seconds == round(length*11_025)/11_025
    assert all(abs(len(x)/RATE - (w.stop - w.start)) < 2/RATE for w, x in windows)

def test_windows_of_an_hour_in_bounded_memory(tmp_path):
    path = sparse_wav(tmp_path/'long.wav', 1, 2000)
    tracemalloc.start()
    found = Decoded()
    count = sum(len(x) == 10_000 for _, x in stream_windows(path, sample_rate=1000, found=found))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 360 and found.seconds == 3600 and peak < 5e6


@pytest.mark.parametrize('kind', [np.int16, np.int32, np.int8])
def test_integers_are_scaled_as_files_hold_them(kind):
    wave = np.random.default_rng(0).uniform(-.9, .9, 1600)
    whole = (wave*-float(np.iinfo(kind).min)).astype(kind)
    assert np.abs(as_audio(whole, 16_000) - wave).max() < 2/-float(np.iinfo(kind).min) + 1e-6


def test_bytes_are_scaled_as_files_hold_them():
    assert np.allclose(as_audio(np.array([0, 64, 128, 192, 255], np.uint8), 16_000), [-1, -.5, 0, .5, 127/128])
