"Decoding against soxr, broken files, long files and real recordings; the length policy."
import pickle, struct, tracemalloc
import numpy as np, pytest, soundfile as sf, soxr
from logocentric.audio.decoding import (AudioError, LengthPolicy, as_audio, audio_info, load_audio, stream_audio,
                                        stream_windows)
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

@pytest.mark.parametrize('head', [b'\0\0\0\x20ftypM4A ', b'\xff\xf1\x50\x80', b'\xff\xf9\x50\x80'])
def test_aac_names_the_cure(tmp_path, head):
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

@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf, 1e30])
def test_samples_that_are_no_numbers(tmp_path, value):
    wave = music(); wave[12_345] = value
    sf.write(tmp_path/'a.wav', np.stack([music(), wave], 1), RATE, 'FLOAT')
    refused(tmp_path/'a.wav', 'NaN, infinite or absurdly large')
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


@pytest.mark.parametrize('kind', [np.int16, np.int32, np.int8])
def test_integers_are_scaled_as_files_hold_them(kind):
    wave = np.random.default_rng(0).uniform(-.9, .9, 1600)
    whole = (wave*-float(np.iinfo(kind).min)).astype(kind)
    assert np.abs(as_audio(whole, 16_000) - wave).max() < 2/-float(np.iinfo(kind).min) + 1e-6


def test_bytes_are_scaled_as_files_hold_them():
    assert np.allclose(as_audio(np.array([0, 64, 128, 192, 255], np.uint8), 16_000), [-1, -.5, 0, .5, 127/128])
