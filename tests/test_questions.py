"Questions about recordings: what is asked, what is struck, who reads, and how a prompt is chosen."
import numpy as np, pandas as pd, pytest, soundfile as sf
from logocentric.core import LogocentricError, shipped_path
from logocentric.data.excerpts import FAMILIES, read_truth, with_families
from logocentric.pipeline.questions import (QUESTIONS, STRUCK, Hearing, answers_of, channel_candidates, choose,
                                            commonest, direct_candidates, hear, kept_words, leave_one_artist_out,
                                            look_up, strike_text)
from logocentric.reasoner.model import Reasoner

GENRE, FAMILY, VOICE = (QUESTIONS[name] for name in ('genre', 'family', 'voice'))


def test_each_question_has_labels_prompts_and_recordings():
    truth = with_families(read_truth())
    assert {name: len(q.asked(truth)) for name, q in QUESTIONS.items()} == dict(genre=33, family=89, kind=113, voice=67,
                                                                                 drums=41)
    for q in QUESTIONS.values():
        assert all('{description}' in p for p in q.prompts + q.choices) and all('{label}' in c for c in q.channels)
        assert set(q.asked(truth).label) <= set(q.names)
    assert FAMILY.names == FAMILIES


@pytest.mark.parametrize('question', [GENRE, FAMILY], ids=['genre', 'family'])
def test_no_name_of_a_label_is_left_when_names_are_struck(question):
    words = [n for names in question.names.values() for n in names]
    for struck in ('asked', 'genres'):
        assert kept_words([f(w) for w in words for f in (str, str.upper, '{} music'.format)], question, struck) == []
    assert kept_words(words, question, 'none') == words


def test_what_is_no_name_is_kept():
    words = ['guitar', 'slow', 'female vocal', 'drums', 'quiet', 'flute', 'no voice', 'beat']
    assert all(kept_words(words, GENRE, struck) == words for struck in STRUCK)
    assert kept_words(['classic', 'popular', 'rocking', 'techno'], GENRE) == ['techno'], 'parts and forms of names'


def test_a_text_loses_its_names_and_never_all_of_itself():
    assert strike_text('A Jazz piano, slow.', GENRE) == 'A piano, slow' and strike_text('rock', GENRE) == 'music'


def test_the_text_of_a_tagger_is_its_likeliest_words_after_striking():
    shares = pd.DataFrame([np.arange(10)/10], columns=[*'abcdefgh', 'rock', 'jazz'])
    assert Hearing('t', shares=shares).strike(GENRE, 'asked').texts == ['h, g, f, e, d, c, b']
    assert Hearing('t', shares=shares).strike(GENRE, 'none').texts[0].startswith('jazz, rock')


def test_accuracy_is_balanced_where_one_answer_is_common():
    assert VOICE.judge(['no']*9 + ['yes'], ['no']*10).value == .5
    assert GENRE.judge(['jazz']*9 + ['rock'], ['jazz']*10).value == .9


def test_a_candidate_is_chosen_on_one_group_and_reported_on_the_other():
    names = list(GENRE.names)
    right, wrong = np.eye(10)[:4], np.eye(10)[[9]*4]
    lucky = np.concatenate([wrong[:2], right[2:]]) # right only where it may not be looked at
    chosen = choose(dict(lucky=lucky, honest=np.concatenate([right[:3], wrong[3:]])), GENRE, names[:4], [1, 1, 0, 0])
    assert chosen.candidate == 'honest' and chosen.chosen_by.value == 1 and chosen.reported.value == .5
    assert chosen.answers == [*names[:3], names[9]]
    with pytest.raises(LogocentricError, match='neither may be empty'): choose({}, GENRE, names[:2], [0, 0])


def test_names_are_looked_up_by_the_largest_share_or_by_their_place():
    shares = pd.DataFrame([[.3, .5, .9], [.6, .5, .0]], columns=['Hip-Hop', 'classic rock', 'guitar'])
    assert look_up(Hearing('t', shares=shares), GENRE, 'pop') == ['rock', 'hip-hop']
    assert look_up(Hearing('c', ['rock after jazz', 'slow']), GENRE, 'pop') == ['rock', 'pop']
    assert look_up(Hearing('t', shares=shares[['guitar']]), GENRE, 'pop') == ['pop', 'pop']


def test_every_way_to_read_gives_a_score_to_every_label():
    reasoner = Reasoner.from_pretrained(shipped_path('reasoner'))
    shares = pd.DataFrame([[.9, .1], [.2, .8]], columns=['calm', 'Loud'])
    heard = Hearing('t', shares=shares).strike(FAMILY, 'asked')
    plain = Hearing('c', ['calm', 'loud drums'])
    for found in (direct_candidates(reasoner, heard, FAMILY, follows=True), channel_candidates(reasoner, heard, FAMILY),
                  channel_candidates(reasoner, plain, FAMILY)):
        assert {v.shape for v in found.values()} == {(2, 10)} and all(np.isfinite(v).all() for v in found.values())
        for (prompt, rule, calibration), values in found.items():
            if calibration: assert np.allclose(values, found[prompt, rule, ''] - found[prompt, rule, ''].mean(0))
        assert set(answers_of(next(iter(found.values())), FAMILY)) <= set(FAMILIES)


def test_the_supervised_line_never_learns_from_the_artist_it_answers_for():
    rng, artists = np.random.default_rng(0), np.repeat(np.arange(20), 2)
    labels = np.where(artists % 2, 'a', 'b')
    features = np.eye(20)[artists] + .01*rng.standard_normal((40, 20)) # an artist, and nothing else
    answers = leave_one_artist_out(features, labels, artists)
    assert np.mean(answers == labels) < .7


def test_the_commonest_answer_is_of_those_that_choose():
    assert commonest(['a', 'a', 'b'], [False, False, True]) == 'b' and commonest(['b', 'a'], [True, True]) == 'a'


def test_a_file_with_another_content_is_heard_again(tmp_path, monkeypatch):
    monkeypatch.setenv('LOGOCENTRIC_HOME', str(tmp_path/'home'))
    file, tone = tmp_path/'a.wav', np.sin(np.arange(8_000)/16_000*2*np.pi*440)
    def shares(wave):
        sf.write(file, wave, 16_000)
        return hear([file])['tags'].shares
    size = [(shares(wave).to_numpy(), file.stat().st_size) for wave in (.1*tone, .1*np.sign(tone))]
    assert size[0][1] == size[1][1] and not np.allclose(size[0][0], size[1][0]), 'the same size, another sound'


def test_of_equal_candidates_the_first_is_chosen():
    names, same = list(GENRE.names), np.eye(10)[:4]
    for order in (['a', 'b'], ['b', 'a']):
        candidates = {(prompt, 'sum', ''): same.copy() for prompt in order}
        assert choose(candidates, GENRE, names[:4], [1, 1, 0, 0]).candidate[0] == order[0]


def test_a_sentence_names_a_label_by_whole_words():
    said = Hearing('captioner', ['a rocking chair', 'hip hop beats, then jazz', 'no genre'])
    assert look_up(said, GENRE, 'pop') == ['pop', 'hip-hop', 'pop']
