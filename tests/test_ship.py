"What comes with the package: small, whole, each part with a card from its own records."
import pytest, torch
from logocentric.captioner.model import Captioner
from logocentric.core import LogocentricError, load_records, read_json, results_path, shipped_path
from logocentric.encoder.audio_encoder import load_encoder
from logocentric.pipeline.experiments import Lab
from logocentric.reasoner.model import Reasoner
from logocentric.ship import ship, write_cards


@pytest.fixture(scope='module')
def records(): return {r.name: r for r in load_records(results_path()) if r.name in ('table1_reasoner_size', 'music_or_not')}


def test_cards_are_those_of_the_records(records, tmp_path):
    import shutil
    for kind in ('captioner', 'reasoner'): shutil.copytree(shipped_path(kind), tmp_path/kind)
    for kind, card in write_cards(records['table1_reasoner_size'], records['music_or_not'], tmp_path).items():
        assert card.read_text() == (shipped_path(kind)/'README.md').read_text()


@pytest.mark.parametrize('kind', ['captioner', 'reasoner'])
def test_cards_refuse_records_of_other_models(records, tmp_path, kind):
    import shutil
    from copy import deepcopy
    for k in ('captioner', 'reasoner'): shutil.copytree(shipped_path(k), tmp_path/k)
    genres = deepcopy(records['table1_reasoner_size'])
    for row in genres.metrics['rows']: row[kind] = 'another'
    with pytest.raises(LogocentricError, match='other models'): write_cards(genres, records['music_or_not'], tmp_path)


def test_what_ships_is_computed_with_in_single_precision():
    captioner, reasoner = Captioner.from_pretrained(shipped_path('captioner')), Reasoner.from_pretrained(shipped_path('reasoner'))
    for model in (captioner, reasoner.model): assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert captioner.num_parameters() == read_json(shipped_path('captioner')/'source.json')['parameters']


def test_the_captioner_hears_as_the_ear_does():
    captioner, ear = Captioner.from_pretrained(shipped_path('captioner')), load_encoder()
    assert captioner.frontend.config == ear.frontend and captioner.config.encoder.hidden_size == ear.encoder.config.hidden_size
    assert not captioner.novelty_levels.isnan().any()


def test_a_laboratory_with_a_named_reader_is_not_shipped(tmp_path):
    with pytest.raises(LogocentricError, match='not trained here'): ship(Lab.at('paper'), tmp_path)
    assert not list(tmp_path.iterdir())
