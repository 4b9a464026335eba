"What may be used for what: who chooses is never in the test, and facts are what tables say."
import csv, pytest
from logocentric.core import LogocentricError, shared_path
from logocentric.data.roles import (CHOOSING_ARTIST, CHOOSING_SPEAKERS, facts_of, instrument_names, known_facts,
                                    known_recordings)


def test_facts_are_what_a_line_says_and_no_more():
    assert known_facts('music', 'yes', 'no', 'lively', 'acoustic-guitar lute') == dict(
        kind='music', voice='sung', drums='no', tempo='fast', instruments=['guitar'])
    assert known_facts('') == dict.fromkeys(('kind', 'voice', 'drums', 'tempo', 'instruments'))
    assert known_facts('speech')['voice'] == 'spoken' and known_facts('other', 'no')['voice'] == 'none'
    assert instrument_names('drums') == [] and instrument_names('') is None


@pytest.fixture
def folder(tmp_path):
    "Spoken digits and surroundings, as their makers lay them out."
    for name in ('fsdd/recordings', 'esc10/meta', 'esc10/audio'): (tmp_path/name).mkdir(parents=True)
    for speaker in (*CHOOSING_SPEAKERS, 'theo'):
        for take in (0, 1, 9): (tmp_path/f'fsdd/recordings/3_{speaker}_{take}.wav').touch()
    with open(tmp_path/'esc10/meta/esc50.csv', 'w', newline='') as f:
        csv.writer(f).writerows([('filename', 'fold', 'category'), ('a.ogg', 1, 'dog'), ('b.ogg', 2, 'rain')])
    return tmp_path


def test_speakers_and_folds_decide_the_role(folder):
    table = known_recordings(folder)
    digits, esc = (table[table.set == name] for name in ('digits', 'esc10'))
    assert len(digits) == 6, 'two takes of each'
    assert set(digits[digits.role == 'choose'].by) == set(CHOOSING_SPEAKERS) and set(digits.kind) == {'speech'}
    assert dict(zip(esc.by, esc.role)) == dict(dog='choose', rain='test')
    assert facts_of(esc)[0] == dict(kind='other', voice='none', drums='no', tempo=None, instruments=None)


def test_a_folder_without_any_set_is_refused(tmp_path):
    with pytest.raises(LogocentricError, match='none of real'): known_recordings(tmp_path)


@pytest.mark.skipif(shared_path() is None, reason='the recordings are not beside this checkout')
def test_nobody_both_chooses_and_is_tested():
    table = known_recordings()
    by = {role: set(rows[rows.set != 'esc10'].by) for role, rows in table.groupby('role')}
    assert not by['choose'] & by['test'] and CHOOSING_ARTIST in by['choose']
    assert not any(CHOOSING_ARTIST in name for name in by['test'])
    assert table.file.is_unique and set(table.kind.dropna()) == {'music', 'speech', 'other'}
