"What is known of a sound: one pass, limits that are kept, a sentence that agrees, and words that are words."
import json, random
import numpy as np, pandas as pd, pytest, soundfile as sf, torch
from typer.testing import CliRunner
from logocentric.captioner.describe import describe, describe_files
from logocentric.captioner.lexicon import WholeWords, lexicon, may_follow
from logocentric import cli
from logocentric.cli import app
from logocentric.core import LogocentricError, shipped_path
from logocentric.data.roles import known_recordings
from logocentric.data.summaries import SUMMARY_WORDS, summarise
from logocentric.encoder.both import load_both
from logocentric.encoder.heads import HEAD_QUESTIONS, load_heads
from logocentric.encoder.sound_facts import STYLE_TAGS, SoundFacts, sound_facts, thinned
from logocentric.encoder.tags import load_taggers, tag_sound
from conftest import needs_recordings


def chord(seconds, rate=16_000, level=.1):
    t = np.arange(int(seconds*rate))/rate
    return (level/3*sum(np.sin(2*np.pi*hz*t) for hz in (220, 277, 330))).astype(np.float32)


def facts_of(least=.6, seconds=30., silent=False, **answers):
    "Facts as heads would give them: question → the likeliest answer and its probability."
    rows = {}
    for question, (answer, p) in answers.items():
        names = HEAD_QUESTIONS[question].answers
        rows[question] = pd.Series({a: p if a == answer else (1 - p)/(len(names) - 1) for a in names})
    rows['instruments'] = pd.Series(dict(piano=.9, guitar=.7, brass=.2))
    return SoundFacts(rows, pd.Series({'guitar': .9, 'rock': .5, 'jazz': .3, 'pop': .02}), seconds, silent,
                      dict.fromkeys(HEAD_QUESTIONS, least))


# --- sentences

def test_every_answer_of_the_heads_can_be_said():
    for question in ('kind', 'voice', 'drums', 'tempo'):
        assert {*HEAD_QUESTIONS[question].answers} <= {*SUMMARY_WORDS[question]}
    assert {*SUMMARY_WORDS['instruments']} <= {*HEAD_QUESTIONS['instruments'].answers}


def test_a_sentence_says_what_is_known_and_nothing_else():
    assert summarise(dict(kind='music', drums='no', instruments=['piano'])) == 'music, without drums, with piano'
    assert summarise(dict(kind='music', voice='none', tags=['jazz'])) == 'instrumental; it sounds like jazz'
    for kind in ('speech', 'other', 'silence', 'short', None): # whatever else is known of what is no music
        assert summarise(dict(kind=kind)) == summarise(dict(kind=kind, drums='yes', instruments=['piano']))
    with pytest.raises(LogocentricError, match="voice: nobody says 'hummed'"):
        summarise(dict(kind="music", voice="hummed"))


def test_other_words_say_the_same():
    facts = dict(kind='music', voice='sung', drums='yes', instruments=['piano', 'guitar'], tags=['rock'])
    said = {summarise(facts, random.Random(i)) for i in range(60)}
    assert len(said) > 20 and all('rock' in s and 'piano' in s and 'guitar' in s for s in said)


# --- facts

def test_an_answer_is_said_from_its_limit_on():
    sure = facts_of(kind=('music', .9), voice=('none', .61), drums=('yes', .59), tempo=('slow', .7)).known()
    assert (sure['voice'], sure['drums'], sure['tempo']) == ('none', None, 'slow')
    assert sure['instruments'] == ['piano', 'guitar'] and sure['tags'] == ['rock', 'jazz'] # no instrument, nothing rare


def test_what_is_no_music_has_neither_drummer_nor_genre():
    speech, other = (facts_of(kind=(kind, .9), voice=('spoken', .9), drums=('yes', .9), tempo=('fast', .9)).known()
                     for kind in ('speech', 'other'))
    assert speech == dict(kind='speech', voice='spoken') and other == dict(kind='other', voice=None)


def test_silence_and_clicks_are_called_what_they_are():
    asked = dict(kind=('music', .9), voice=('none', .9), drums=('no', .9), tempo=('slow', .9))
    assert facts_of(silent=True, **asked).known() == dict(kind='silence')
    assert facts_of(seconds=.045, **asked).known() == dict(kind='short')
    assert summarise(sound_facts(np.zeros(48_000, np.float32)).known()) == 'silence'
    assert summarise(sound_facts(chord(.045)).known()) == 'too short to say'


def test_one_pass_hears_what_both_encoders_hear():
    "Features are those on which heads were fitted; tags are those of the taggers."
    wave, heads = chord(7.), load_heads()
    found, both = sound_facts(wave), load_both().encode(wave)
    parts = {p: both.part(p)[0].numpy()[None] for p in heads.config.inputs}
    for question, p in heads.probabilities(parts).items():
        assert np.allclose(p.iloc[0], found.answers[question], atol=2e-3), question
    assert {*found.tags.index} == {label.lower() for m in load_taggers().values() for label in m.config.labels}
    told = tag_sound(wave).shares.rename(str.lower, level='tag').groupby('tag').max() # as `logocentric tag` says
    assert np.allclose(found.tags[told.index], told)
    assert found.tags.is_monotonic_decreasing and {*STYLE_TAGS} <= {*found.tags.index} and found.seconds == 7


def test_a_file_is_known_as_its_waveform_is(tmp_path):
    sf.write(tmp_path/'x.wav', chord(4.), 16_000, subtype='FLOAT')
    sf.write(tmp_path/'y.wav', np.stack([chord(4.)]*2, 1), 16_000, subtype='FLOAT')
    expected = sound_facts(chord(4.)).answers
    for name in 'xy':
        for q, p in sound_facts(tmp_path/f'{name}.wav').answers.items(): assert np.allclose(p, expected[q], atol=1e-6)


@needs_recordings
def test_recordings_that_choose_are_mostly_known():
    "A small part of those that the heads were calibrated on: what is measured on others stands in the study."
    table = known_recordings()
    some = table[(table.role == 'choose') & table.kind.notna()].groupby('kind').head(5)
    said = [sound_facts(file).known()['kind'] for file in some.file]
    assert np.mean(some.kind.to_numpy() == said) > .7


# --- descriptions begin with it

def test_a_description_begins_with_what_is_known(tmp_path):
    sf.write(tmp_path/'x.wav', chord(4.), 16_000)
    found = describe(tmp_path/'x.wav')
    assert found.summary == summarise(sound_facts(tmp_path/'x.wav').known())
    assert {*HEAD_QUESTIONS, 'tags'} == {*found.facts}
    assert sum(found.facts['kind'].values()) == pytest.approx(1, abs=1e-3)
    said = CliRunner().invoke(app, ['describe', str(tmp_path/'x.wav')])
    lines = said.stdout.splitlines()
    assert lines[1].strip().lower() == found.summary + '.' and 'heard 0.0' in lines[2]
    (_, again), = describe_files([tmp_path/'x.wav'])
    assert again == found


def test_classify_reads_the_summary_or_the_words(tmp_path):
    sf.write(tmp_path/'x.wav', chord(4.), 16_000)
    ask = lambda *options: CliRunner().invoke(app, ['classify', str(tmp_path/'x.wav'), '--json', '-', *options])
    row, words = (json.loads(ask(*o).stdout)['files'][0] for o in ([], ['--read', 'words']))
    is_other = max(row['facts']['kind'], key=row['facts']['kind'].get) == 'other' # then a summary says nothing more
    assert row['answered_from'] == [row['summary'] + is_other*f"; {row['text']}"]
    assert words['answered_from'] == [words['text']]
    models = shipped_path()
    assert json.loads(ask('--model', str(models)).stdout)['files'][0]['answered_from'] == [words['text']]
    wrong = ask('--read', 'minds')
    assert wrong.exit_code and '--read minds' in str(wrong.exception)


def test_the_words_are_read_too_where_a_summary_says_nothing_of_a_sound():
    row = dict(summary='neither music nor speech', text='a hiss', facts=dict(kind=dict(music=.1, speech=.2, other=.7)))
    assert cli._read(row, 'summary') == 'neither music nor speech; a hiss' and cli._read(row, 'words') == 'a hiss'
    assert cli._read(dict(row, summary='sung', facts=dict(kind=dict(music=.8, other=.2))), 'summary') == 'sung'


# --- words

def test_only_words_of_the_lexicon_are_completed():
    words = frozenset(lexicon(['Wind-like hum, 50 Hz']))
    assert words == {'wind', 'like', 'hum', 'hz'}
    beginnings = frozenset(w[:n] for w in words for n in range(len(w) + 1))
    for text, token, may in (('', ' Wi', True), ('wi', 'nd, ', True), ('wind', 'like', False), ('wind', '-li', True),
                             ('', ' 60', True), ('hu', '', True), ('hu', ' ', False)):
        assert may_follow(text, token, words, beginnings) is may, (text, token)


def test_the_end_comes_after_a_word_and_some_token_always_may():
    from logocentric.captioner.model import Captioner
    model = Captioner.from_pretrained(shipped_path('captioner'))
    only = WholeWords(model.tokenizer, model.config.words)
    for beginning in sorted(only.beginnings)[::7]:
        allowed = only.allowed(beginning)
        assert allowed.any() and bool(allowed[only.end]) == (not beginning or beginning in only.words), beginning
    scores = only(torch.tensor([[model.config.decoder.bos_token_id]]), torch.zeros(1, model.config.decoder.vocab_size))
    assert (scores[0] == 0).any() and (scores[0] == -torch.inf).any()


def test_strange_sounds_are_described_in_words():
    sounds = [chord(3.), np.random.default_rng(0).normal(0, .1, 32_000).astype('f4'), chord(2., level=.9)[::-1].copy()]
    from logocentric.captioner.model import Captioner
    words = {*Captioner.from_pretrained(shipped_path('captioner')).config.words}
    for sound in sounds:
        found = describe(sound, samples=2)
        assert {*lexicon([found.text, *found.samples])} <= words
        short = describe(sound, max_new_tokens=5) # it runs out of room, perhaps within a word
        assert {*lexicon([short.text])} <= words


def test_of_silence_nothing_can_be_told(tmp_path):
    sf.write(tmp_path/'x.wav', np.zeros(32_000, np.float32), 16_000)
    said = CliRunner().invoke(app, ['classify', str(tmp_path/'x.wav'), '--json', '-'])
    row, = json.loads(said.stdout)['files']
    assert row['answered_from'] == ['silence'] and row['unknown'] == 1 and row['cannot_tell']
    said = CliRunner().invoke(app, ['ask', str(tmp_path/'x.wav'), 'Is there singing?'])
    assert 'cannot tell' in said.stdout
    words = CliRunner().invoke(app, ['classify', str(tmp_path/'x.wav'), '--json', '-', '--read', 'words'])
    assert not json.loads(words.stdout)['files'][0]['cannot_tell']


def test_of_a_long_sound_some_windows_are_heard(tmp_path):
    sf.write(tmp_path/'x.wav', np.tile(chord(5.), 30), 16_000)
    found = describe(tmp_path/'x.wav')
    assert thinned(150.) == 2 and found.summary == summarise(sound_facts(tmp_path/'x.wav', every=2).known())
    whole, some = (sound_facts(tmp_path/'x.wav', every=n).answers['kind'] for n in (1, 5))
    assert (whole - some).abs().max() < .2


def test_sampled_words_are_not_asked_for_doubt(tmp_path):
    sf.write(tmp_path/'x.wav', np.zeros(32_000, np.float32), 16_000)
    said = CliRunner().invoke(app, ['classify', str(tmp_path/'x.wav'), '--json', '-', '--listen', '2'])
    row, = json.loads(said.stdout)['files']
    assert len(row['answered_from']) == 2 and row['unknown'] == 0 and not row['cannot_tell']
