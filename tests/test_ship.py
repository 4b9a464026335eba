"What comes with the package: small, whole, each part with a card from its own records."
import shutil
from copy import deepcopy
import pytest, torch
from logocentric.captioner.model import Captioner
from logocentric.core import LogocentricError, read_json, shipped_path
from logocentric.data.sound_corpus import draw_sound, render_sound
from logocentric.data.styles import GTZAN_LABELS
from logocentric.encoder.audio_encoder import load_encoder
from logocentric.pipeline.captioner_stages import trained_captioner
from logocentric.pipeline.reasoner_stages import reasoner_stage
from logocentric.pipeline.scales import Setup
from logocentric.reasoner.model import Reasoner
from ship import KINDS, heads_card, records, ship, ship_heads, write_cards


@pytest.fixture(scope='module')
def found(): return records()


@pytest.fixture
def package(tmp_path):
    "A copy of what ships."
    for kind in KINDS: shutil.copytree(shipped_path(kind), tmp_path/kind)
    return tmp_path


def test_cards_are_those_of_the_records(found, package):
    for kind, card in write_cards(found['table1_reasoner_size'], found['music_or_not'], package).items():
        assert card.read_text() == (shipped_path(kind)/'README.md').read_text(), 'run `python tools/ship.py --cards`'


def test_heads_and_their_card_are_those_of_the_record(found, tmp_path):
    record, heads = found['heads_on_recordings'], shipped_path('heads')
    assert (heads/'README.md').read_text() == heads_card(record), 'run `python tools/ship.py --heads FOLDER`'
    target = ship_heads(heads, record, tmp_path)
    assert all((target/f).read_bytes() == (heads/f).read_bytes() for f in ('README.md', 'source.json', 'config.json'))
    other = deepcopy(record)
    other.metrics['chosen']['clips'] += 1
    with pytest.raises(LogocentricError, match='other heads'): ship_heads(heads, other, tmp_path)


@pytest.mark.parametrize('kind', KINDS)
def test_cards_refuse_records_of_other_models(found, package, kind):
    genres = deepcopy(found['table1_reasoner_size'])
    for row in genres.metrics['rows']: row[dict(captioner='captioner', reasoner='model')[kind]] = 'another'
    with pytest.raises(LogocentricError, match='other models'): write_cards(genres, found['music_or_not'], package)


def test_cards_refuse_a_record_of_sorts_of_another_captioner(found, package):
    sorts = deepcopy(found['music_or_not'])
    sorts.metrics['captioner'] = 'another'
    with pytest.raises(LogocentricError, match='other models'):
        write_cards(found['table1_reasoner_size'], sorts, package)


def test_what_ships_is_computed_with_in_single_precision():
    captioner = Captioner.from_pretrained(shipped_path('captioner'))
    reasoner = Reasoner.from_pretrained(shipped_path('reasoner'))
    for model in (captioner, reasoner.model): assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert captioner.num_parameters() == read_json(shipped_path('captioner')/'source.json')['parameters']


def test_the_captioner_encodes_as_the_shipped_encoder_does():
    captioner, encoder = Captioner.from_pretrained(shipped_path('captioner')), load_encoder()
    assert captioner.frontend.config == encoder.frontend
    assert captioner.config.encoder.hidden_size == encoder.encoder.config.hidden_size
    assert not captioner.novelty_levels.isnan().any()


def test_a_run_with_a_named_reasoner_is_not_shipped(tmp_path):
    with pytest.raises(LogocentricError, match='not trained here'): ship(Setup.at('paper'), tmp_path)
    assert not list(tmp_path.iterdir())


def test_half_precision_changes_little(smoke_home, tmp_path):
    "A run of toothbrush size is shipped: four training steps, so do not expect sense."
    setup = Setup.at('smoke', 1)
    shipped, made = ship(setup, tmp_path), dict(captioner=trained_captioner(setup), reasoner=reasoner_stage(setup))
    wave = torch.from_numpy(render_sound(draw_sound(99, 0, 'talk')).wave)
    captioners = [Captioner.from_pretrained(p) for p in (made['captioner'].folder(), shipped['captioner'])]
    with torch.no_grad(): whole, half = (c.prefix(c.encode(c.frontend(wave)[None])) for c in captioners)
    torch.testing.assert_close(half, whole, atol=2e-2, rtol=0)
    words = ['walking bass and brushed drums', 'distorted guitars at full speed']
    reasoners = [Reasoner.from_pretrained(p) for p in (made['reasoner'].folder(), shipped['reasoner'])]
    whole, half = (torch.tensor(r.reason(words, GTZAN_LABELS).values) for r in reasoners)
    torch.testing.assert_close(half, whole, atol=2e-2, rtol=0)
    size = lambda p: (p/'model.safetensors').stat().st_size
    assert size(shipped['captioner']) < .6*size(made['captioner'].folder())
