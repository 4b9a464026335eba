"The floor: names of configurations and code, files that are whole or absent, settings, cached folders, records."
import json
from dataclasses import dataclass
from types import SimpleNamespace
import numpy as np, pytest, torch
from logocentric import core
from logocentric.cache import cached_folder, progress
from logocentric.core import (LogocentricError, Record, Settings, atomic_write, bf16_is_faster, code_hash, config_hash,
                              load_records, save_record, write_json)


@pytest.fixture
def package(tmp_path, monkeypatch):
    "A package of one module and one table."
    (tmp_path/'assets').mkdir()
    (tmp_path/'assets'/'facts.toml').write_text('blues = 1\n')
    (tmp_path/'module.py').write_text("TABLE = 'facts.toml'\n")
    origin = lambda name: SimpleNamespace(origin=tmp_path/('module.py' if '.' in name else '__init__.py'))
    monkeypatch.setattr(core, 'find_spec', origin)
    def hashed():
        code_hash.cache_clear()
        return code_hash('module')
    yield tmp_path, hashed
    code_hash.cache_clear()


def test_code_hash_sees_code_and_named_tables_only(package):
    folder, hashed = package
    first = hashed()
    (folder/'module.py').write_text("TABLE  =  'facts.toml'  # a comment\n")
    (folder/'assets'/'other.toml').write_text('jazz = 1\n')
    assert hashed() == first
    (folder/'assets'/'facts.toml').write_text('blues = 2\n')
    second = hashed()
    (folder/'module.py').write_text("TABLE = ('facts.toml', 1)\n")
    assert len({first, second, hashed()}) == 3


def test_config_hash_does_not_depend_on_order_or_type_of_numbers():
    assert config_hash(dict(a=np.float64(2), b=(1, 2))) == config_hash(dict(b=[1, 2], a=2.))
    assert config_hash(dict(a=1)) != config_hash(dict(a=2))


def test_a_killed_write_leaves_the_old_file(tmp_path):
    write_json(tmp_path/'a.json', dict(x=1))
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path/'a.json') as path:
        path.write_text('half')
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ['a.json']
    assert json.loads((tmp_path/'a.json').read_text()) == dict(x=1)


def test_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError): write_json(tmp_path/'a.json', dict(x=float('nan')))
    assert list(tmp_path.iterdir()) == []


def test_settings_are_checked_when_they_are_made_and_read():
    @dataclass(frozen=True)
    class Positive(Settings):
        x: float = 1.
        def check(self):
            if self.x <= 0: raise LogocentricError('x is positive')
    assert Positive.from_dict(dict(x=2.)) == Positive(2.)
    with pytest.raises(LogocentricError, match='x is positive'): Positive.from_dict(dict(x=-1.))
    with pytest.raises(LogocentricError, match='no setting y'): Positive.from_dict(dict(y=1.))


def test_a_killed_folder_is_continued_and_a_finished_one_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv('LOGOCENTRIC_HOME', str(tmp_path))
    calls = []
    def make(folder):
        calls.append(sorted(p.name for p in folder.iterdir()))
        (folder/'part').touch()
        if len(calls) == 1: raise KeyboardInterrupt
        return dict(parts=1)
    with pytest.raises(KeyboardInterrupt): cached_folder('work', dict(x=1), make)
    found = [cached_folder('work', dict(x=1), make) for _ in range(2)]
    assert calls == [['lock'], ['lock', 'part']] and found[0] == found[1]
    assert json.loads((found[0]/'done.json').read_text())['info'] == dict(parts=1)
    assert cached_folder('work', dict(x=2), lambda folder: None) != found[0]


def test_records_are_found_by_name_and_parameter(tmp_path):
    for seed in (0, 1): save_record(Record('study', dict(scale='smoke', seed=seed), dict(n=seed)), tmp_path)
    record, = load_records(tmp_path, name='study', seed=1)
    assert record.metrics == dict(n=1) and record.key.startswith('study-smoke-')
    assert load_records(tmp_path, scale='mini') == []


def test_progress_is_silent_in_tests(capfd):
    assert list(progress([1, 2], desc='quiet')) == [1, 2] and capfd.readouterr().err == ''


@pytest.mark.parametrize('found,faster', [(dict(avx512_bf16=True), True), (dict(amx_bf16=True), True),
                                          (dict(avx2=True, avx512_bf16=False), False), ({}, False)])
def test_half_precision_is_told_by_the_machine_and_by_no_clock(monkeypatch, found, faster):
    "A busy machine decides as an idle one does: results do not change with the load."
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: found)
    assert bf16_is_faster('cpu') is faster and not bf16_is_faster('mps')
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (7, 5))
    assert not bf16_is_faster('cuda:0')
