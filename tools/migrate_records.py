"""Records of runs from before the redesign, in today's words: keys and file names change, values do not.

    python tools/migrate_records.py FOLDER…     # by default data/results
"""
import sys
from pathlib import Path
from logocentric.core import Record, read_json, results_path, write_json
from dataclasses import asdict

NAMES = dict(ear_or_reader='captioner_or_reasoner', ear_study='encoder_study', probe_ear='probe_encoder',
             sentence_reader='sentence_reasoner')
KEYS = dict(lines='baselines', reader='reasoner', reasoner='model', readers='reasoners', reader_sizes='reasoner_sizes',
            drawn='sampled',
            draws='samples', deaf='no_audio', strange='unknown', direct='classifier', heard='predicted', told='stated')
SPECIAL = {
    'captioner_or_reasoner': {'ear': 'captioner', 'lucky': 'right_by_chance'},
    'probe_encoder': {'ear': 'encoder', 'the ear': 'the encoder'},
    'bridge_study': {'hears nothing': 'no audio', 'columns think first': 'MLP before attention', 'said': 'captions'},
    'forgetting': dict(hearing='encoding'),
    'warm_start': dict(loss_of_ear='loss_of_shipped', difference_of_ear='difference_of_shipped'),
    'table3_audioset': {'never heard one': 'no recordings',
                        'never heard one, beside what it says of mixtures': 'no recordings, relative to mixtures'}}
WORDS = {
    'encoder_study': [('paint, ', 'reconstruction, '), ('causes without painting', 'causes without reconstruction'),
                      ('columns hidden', 'frames masked'),
                      ('hidden', 'masked')],
    'sentence_reasoner': [(' reader', ' reasoner')]}


def renamed(key: str, name: str) -> str:
    "The key of a record of an experiment, in today's words."
    key = (KEYS | SPECIAL.get(name, {})).get(key, key)
    for old, new in WORDS.get(name, []): key = key.replace(old, new)
    return key


def migrate(value, name: str):
    "A value with its keys renamed, however deep."
    if isinstance(value, dict): return {renamed(k, name): migrate(v, name) for k, v in value.items()}
    return [migrate(v, name) for v in value] if isinstance(value, list) else value


def migrate_record(path: Path) -> Path:
    "Rewrite one record, under the name that it would have today."
    old = read_json(path)
    name = NAMES.get(old['name'], old['name'])
    new = Record(**old | dict(name=name, metrics=migrate(old['metrics'], name)))
    path.unlink()
    return write_json(path.with_name(f'{new.key}.json'), asdict(new))


if __name__ == '__main__':
    for folder in map(Path, sys.argv[1:] or [results_path()]):
        for path in sorted(folder.glob('*.json')): print(path.name, '→', migrate_record(path).name)
