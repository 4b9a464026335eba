"The recordings that the book carries along: short, of one format, and with their sources."
import csv
import numpy as np, pytest, soundfile as sf, torch
from logocentric.audio.frontend import LogMel
from logocentric.audio.decoding import load_audio
from logocentric.core import demo_path

if demo_path('piano') is None:
    pytest.skip('no data/demo here: the recordings come with a checkout', allow_module_level=True)
FOLDER = demo_path('piano').parent


def sources(): return list(csv.DictReader((FOLDER/'sources.csv').open(encoding='utf-8')))


def test_every_recording_has_its_source_and_licence():
    assert sorted(row['file'] for row in sources()) == sorted(p.name for p in FOLDER.glob('*.ogg'))
    for row in sources():
        assert row['artist'] and row['title'] and row['repository'] and row['path'] and row['licence_source']
        assert row['licence'] == 'CC0' or row['licence'].startswith('Public domain'), row['file']


def test_recordings_are_short_and_of_one_format():
    for row in sources():
        info = sf.info(FOLDER/row['file'])
        assert (info.samplerate, info.channels) == (22_050, 1) and info.duration <= 10, row['file']
        assert abs(info.duration - float(row['seconds'])) < .1, row['file']


def test_recordings_fade_and_sound():
    for row in sources():
        wave = load_audio(FOLDER/row['file'])
        assert np.abs(wave[:32]).max() < .1*np.abs(wave).max() > np.abs(wave[-32:]).max(), row['file']
        logmel = LogMel()(torch.from_numpy(wave))
        assert logmel.shape[1] == 80 and logmel.std() > 1, row['file']


def test_no_path_where_there_is_no_recording(): assert demo_path('no such recording') is None
