"Recordings with a truth table: what the table says, and excerpts that are made again."
import numpy as np, pandas as pd, pytest, soundfile as sf
from logocentric.core import LogocentricError
from logocentric.data.excerpts import (FAMILIES, excerpt_paths, genre_family, is_unchanged, make_excerpts, read_truth,
                                       spectrum_profile, with_families)
from logocentric.data.lists import DataError


def test_the_table_of_the_project_is_complete():
    truth = read_truth()
    assert len(truth) == 113 and truth.artist.nunique() == 39
    assert set(truth.kind) == {'music', 'speech', 'other'} and (truth.licence != '').all()
    assert truth.sha256.str.fullmatch('[0-9a-f]{64}').all() and (truth.spectrum.str.split().str.len() == 12).all()
    assert not truth.file.str.startswith(('/', '..')).any()


def test_every_family_has_recordings_and_the_table_has_a_family_where_it_is_music():
    found = with_families(read_truth())
    assert set(found.family) - {''} == set(FAMILIES) and (found.family != '').sum() == 89
    assert (found.family[found.kind != 'music'] == '').all()


@pytest.mark.parametrize('text, family', [('Jazz (db)', 'jazz'), ('jazz/funk (category)', 'disco and funk'), ('', ''),
                                          ('Silent Film Score', 'soundtrack'), ('R&B', 'hip-hop and R&B')])
def test_free_texts_mean_families(text, family): assert genre_family(text) == family


@pytest.fixture
def public(tmp_path):
    "A folder that stands in for public repositories, its address, and a table of one excerpt."
    sound = .1*np.random.default_rng(0).standard_normal((5*22_050, 2))
    (tmp_path/'web'/'me'/'songs').mkdir(parents=True)
    sf.write(tmp_path/'web'/'me'/'songs'/'my song.wav', sound, 22_050)
    truth = pd.DataFrame([dict(file='audio/song.ogg', artist='A', kind='music', repo='me/songs', path='my song.wav',
                               start_s='1', seconds='2', spectrum='')])
    return f'file://{tmp_path}/web/{{repo}}/{{path}}', truth


def test_an_excerpt_is_cut_from_its_source_at_its_own_rate(public, tmp_path):
    address, truth = public
    assert make_excerpts(truth, tmp_path/'out', address) == {}
    info = sf.info(excerpt_paths(truth, tmp_path/'out')[0])
    assert (info.samplerate, info.channels, round(info.duration, 2)) == (22_050, 1, 2.)
    before = (tmp_path/'out'/'audio'/'song.ogg').stat().st_mtime_ns
    make_excerpts(truth, tmp_path/'out', address)
    assert (tmp_path/'out'/'audio'/'song.ogg').stat().st_mtime_ns == before, 'what is there stays'


def test_another_sound_behind_the_address_is_refused_and_costs_its_own_line(public, tmp_path):
    address, truth = public
    tone = np.sin(2*np.pi*440*np.arange(32_000)/16_000).astype('float32')
    other = truth.assign(file='audio/other.ogg', spectrum=' '.join(map(str, spectrum_profile(tone))))
    failed = make_excerpts(pd.concat([other, truth]), tmp_path/'out', address)
    assert list(failed) == ['audio/other.ogg'] and 'another sound' in failed['audio/other.ogg']
    assert not (tmp_path/'out'/'audio'/'other.ogg').exists() and (tmp_path/'out'/'audio'/'song.ogg').exists()


def test_what_cannot_be_fetched_or_lies_outside_is_named(public, tmp_path):
    address, truth = public
    rows = pd.concat([truth.assign(file='a.ogg', path='gone.wav'), truth.assign(file='../b.ogg')])
    failed = make_excerpts(rows, tmp_path/'out', address)
    assert 'cannot be fetched' in failed['a.ogg'] and 'lies outside' in failed['../b.ogg']
    assert not (tmp_path/'b.ogg').exists()


def test_missing_excerpts_say_what_makes_them(tmp_path):
    with pytest.raises(DataError, match='logocentric get recordings'): excerpt_paths(read_truth(), tmp_path)


def test_tables_that_are_none_are_refused(tmp_path):
    (tmp_path/'t.csv').write_text('file,artist\na.ogg,A\n')
    with pytest.raises(DataError, match='no column kind'): read_truth(tmp_path/'t.csv')
    (tmp_path/'t.csv').write_text('file,artist,kind\na.ogg,A,music\na.ogg,B,music\n')
    with pytest.raises(DataError, match='listed twice'): read_truth(tmp_path/'t.csv')
    with pytest.raises(LogocentricError, match='no such table'): read_truth(tmp_path/'gone.csv')


def test_the_excerpts_here_are_those_of_the_table(shared):
    truth = read_truth()
    paths = excerpt_paths(truth, shared('real', 'truth.csv').parent)
    assert all(is_unchanged(p, s) for p, s in zip(paths, truth.sha256))
