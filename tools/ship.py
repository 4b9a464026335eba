"""Put trained models into the package, small enough to come with it, each with a card.

    python tools/ship.py --scale mini --seed 1

puts the captioner with most pairs and the largest reasoner of a run where `describe` and `classify` find them
without training, and writes their cards from the records of the experiments `table1_reasoner_size` and `music_or_not`:
no number on a card is typed. (The audio encoder has its own recipe, `logocentric pretrain`, and its own card.)

    python tools/ship.py --heads data/runs/mini-1/heads

puts the heads of the experiment `heads_on_recordings` there, with a card from its record.

Weights are kept in half precision and computed with in full precision again. With them lies `source.json`, which names
the stages that they come from; a card is refused where the records are of other models.
"""
import argparse, shutil
from pathlib import Path
from logocentric.captioner.model import Captioner
from logocentric.core import LogocentricError, Record, load_records, project_root, read_json, shipped_path, write_json
from logocentric.data.players import variety_sources
from logocentric.encoder.heads import HEAD_QUESTIONS, load_heads
from logocentric.metrics import with_interval
from logocentric.pipeline.captioner_stages import trained_captioner
from logocentric.pipeline.data_stages import mixed_in_sounds
from logocentric.pipeline.reasoner_stages import reasoner_stage
from logocentric.pipeline.report import genres_table, sorts_table
from logocentric.pipeline.scales import Setup
from logocentric.reasoner.model import Reasoner
from logocentric.reasoner.training import REASONER_SIZES

KINDS = ('captioner', 'reasoner')


# --- models into the package

def sources(setup):
    "The stages that made the models of a run."
    largest = setup.scale.reasoner.largest
    if largest not in REASONER_SIZES:
        raise LogocentricError(f'{largest} is not trained here: ship a run that makes its own reasoner')
    return dict(captioner=trained_captioner(setup), reasoner=reasoner_stage(setup))


def about(setup):
    "What a card says of the run that the models come from."
    captioner, sounds = setup.scale.captioner, mixed_in_sounds(setup, 'train')
    return dict(scale=setup.scale.name, seed=setup.seed, start=captioner.start, frozen=captioner.is_frozen,
                pairs=setup.scale.data.pairs[-1], sounds=sounds.n if sounds else 0,
                reasoner=setup.scale.reasoner.largest)


def halve(kind, source, target):
    "Save a model in half precision; returns how many parameters it has."
    whole = (Captioner if kind == 'captioner' else Reasoner).from_pretrained(source)
    model = whole if kind == 'captioner' else whole.model
    model.half()
    whole.save_pretrained(target)
    return model.num_parameters()


def ship(setup: Setup,                    # a run; its models are trained now if they are not there
         folder: str | Path | None = None # by default the package itself
        ) -> dict[str, Path]:
    "Put the captioner with most pairs and the largest reasoner into the package."
    stages, run = sources(setup), about(setup)
    targets = {kind: Path(folder)/kind if folder else shipped_path(kind) for kind in KINDS}
    for kind, target in targets.items():
        shutil.rmtree(target, ignore_errors=True)
        source = stages[kind].folder()
        parameters = halve(kind, source, target)
        write_json(target/'source.json', dict(run, stage=stages[kind].key, parameters=parameters))
        write_json(target/'history.json', read_json(source/'history.json'))
    return targets


# --- cards

CAPTIONER = """---
license: apache-2.0
tags: [audio, music, captioning]
---
# The captioner of logocentric

Says what a sound is like ({parameters:.1f} M parameters: a vision transformer, eight prefix vectors, a GPT-2 of a few
layers). Use it with `logocentric.describe('song.mp3')` or `logocentric describe song.mp3`.

**What it learned from.** {pairs:,} clips of music composed by rules and rendered through a soundfont, and {sounds:,}
clips of procedural sound, each with its description; its encoder began as {began}{frozen}.{prompted}
{seconds:.0f} s of training, after GPT-2 had been trained on the descriptions.
`logocentric reproduce --scale {scale} --seed {seed}` makes it again.

**What it reached.** Genres, which were never labels of its own, answered from its words by the reasoner of this
package, with 95 % Wilson intervals. The supervised baseline has learned 2,000 genre labels; an encoder that was trained
to name attributes has had those of 10,000 clips, and genres are drawn from attributes.

{genres}

Do its words tell music, a voice, and neither apart? A share of a third is chance:

{sorts}

**What it is not.** It was never trained on a recording: what it says of one beyond the summary is fluent, and often
wrong. `novelty` says how far a sound lies from what it learned.
"""

PROMPTED = ''' In {share:.0%} of the steps a summary of the clip stood before
the description, with the mistakes that heads and taggers make on recordings, and half of these clips had the sound of
another one: so from a summary it goes on in agreement.'''

REASONER = """---
license: apache-2.0
tags: [music, text]
---
# The reasoner of logocentric

A small GPT-Neo ({parameters:.1f} M parameters) that has read sentences of music knowledge made from a file of facts,
and sentences about summaries of sounds, in the words of the summaries. It finishes a prompt such as *The music feels
{{description}}. So its genre is*. Use it with `logocentric classify song.mp3 --labels "blues,jazz"`. It knows of
music only what the facts say, and of sounds that are not music that they are none; *unknown* is its word where
nothing is told. `logocentric reproduce --scale {scale} --seed {seed}` makes it again.

Zero-shot genres, from the words of the captioner of this package and from true words:

{genres}
"""

PAPER = 'an autoencoder pre-trained on the same clips'
BEGAN = dict(ear='the [audio encoder](../ear/README.md) of this package, which had been trained on other such clips to '
                 'reconstruct them and to name what made them',
             random='random weights', ear_random='random weights', paper=PAPER, paper75=PAPER)


def check(source, genres, sorts):
    "Refuse records of other models."
    rows = [r for r in genres.metrics['rows'] if r['reasoner'] == source['reasoner']['reasoner']]
    of = {('captioner', r['captioner']) for r in [sorts.metrics, *rows]} | {('reasoner', r['model']) for r in rows}
    if of != {(kind, s['stage']) for kind, s in source.items()}:
        raise LogocentricError('these records are of other models: run both experiments again with these')


def write_cards(genres: Record,                   # of `table1_reasoner_size`
                sorts: Record,                    # of `music_or_not`
                folder: str | Path | None = None  # where the models are; by default the package
               ) -> dict[str, Path]:
    "Write a card beside each model."
    folders = {kind: Path(folder)/kind if folder else shipped_path(kind) for kind in KINDS}
    source = {kind: read_json(f/'source.json') for kind, f in folders.items()}
    check(source, genres, sorts)
    c, share = source['captioner'], read_json(folders['captioner']/'config.json').get('prompt_share')
    facts = dict(prompted=PROMPTED.format(share=share) if share else '',
                 genres=genres_table(genres, source['reasoner']['reasoner']), sorts=sorts_table(sorts),
                 began=BEGAN[c['start']], frozen=', and stayed frozen while the rest learned' if c['frozen'] else '',
                 seconds=read_json(folders['captioner']/'history.json')['seconds'])
    for kind, text in dict(captioner=CAPTIONER, reasoner=REASONER).items():
        numbers = source[kind] | facts | dict(parameters=source[kind]['parameters']/1e6)
        (folders[kind]/'README.md').write_text(text.format(**numbers), encoding='utf-8')
    return {kind: f/'README.md' for kind, f in folders.items()}


HEADS = """---
license: apache-2.0
tags: [audio, music, classification]
---
# The heads of logocentric

Answer plain questions about a sound, each with a probability: music, speech or neither; sung, spoken or no voice;
drums; how fast; which instruments. Linear, on features of the two musicnn models of this package, which stay frozen.
Use them with `logocentric describe song.mp3`, or `logocentric.encoder.sound_facts.sound_facts('song.mp3')`.

**What they learned from.** {clips:,} clips and {words:,} lone spoken words that were rendered and synthesised, and no
recording, made with

{sources}

and with singers and sounds of this package. None of it is needed to use them.

**What chose and calibrated them.** Recordings, {calibrated}: penalties, scale and shifts
of the answers, and how likely an instrument must be to be named ({threshold:.2f}).

**What they reached** on recordings that chose nothing: balanced accuracy with 95 % bootstrap intervals, the same with
statistics of the log-mel in place of musicnn, and the expected calibration error (ECE).

{reached}

A voice in music, sung or not: {voice}. Instruments: precision {precision}, recall {recall}.

**What they are not.** Most of the speech that tested them is single digits at 8 kHz, of which many are taken for
another sound; few recordings of known tempo tested that. They know one kind for a whole sound, and a speaker over music
is one or the other.
"""


def heads_card(record: Record # of `heads_on_recordings`
              ) -> str:
    "The card of the heads."
    m = record.metrics
    chosen, known = m['chosen'], {s.name: s for s in variety_sources()}
    sources = [known[name] for name in chosen['sources']]
    rows = ['| question | N | chance | balanced accuracy | log-mel | ECE |', '|---|---|---|---|---|---|']
    shown = lambda s: with_interval(s, '.2f')
    cells = lambda q, r: (HEAD_QUESTIONS[q].title, r['value']['n'], f"{r['chance']:.2f}", shown(r['value']),
                          shown(r['baseline']), f"{r['ece']:.2f}")
    rows += [f"| {' | '.join(map(str, cells(q, r)))} |" for q, r in m['reported'].items()]
    found = m['instruments']['test recordings']
    return HEADS.format(
        clips=chosen['clips'], words=chosen['words'], threshold=chosen['threshold'], reached='\n'.join(rows),
        sources='\n'.join(f'* {s.name} (Debian: {s.debian}), {s.licence}' for s in sources),
        calibrated=', '.join(f'{n} for {q}' for q, n in chosen['calibrated_by'].items()),
        voice=f"{with_interval(m['voice_in_music']['value'], '.2f')}, N = {m['voice_in_music']['value']['n']}",
        **{k: with_interval(found[k], '.2f') for k in ('precision', 'recall')})


def ship_heads(run: str | Path,                 # where the experiment kept them
               record: Record,                  # of `heads_on_recordings`
               folder: str | Path | None = None # by default the package itself
              ) -> Path:
    "Put heads into the package, with their card."
    if read_json(Path(run)/'source.json') != record.metrics['chosen']:
        raise LogocentricError('this record is of other heads: run the experiment again')
    target = Path(folder)/'heads' if folder else shipped_path('heads')
    load_heads(run).save_pretrained(target)
    shutil.copy(Path(run)/'source.json', target)
    (target/'README.md').write_text(heads_card(record), encoding='utf-8')
    return target


def records():
    "The committed records, by name."
    return {r.name: r for r in load_records(project_root()/'data'/'results')}


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--scale', default='mini')
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--cards', action='store_true', help='write the cards again and leave the models as they are')
    parser.add_argument('--heads', help='put these heads into the package, and nothing else')
    given = parser.parse_args()
    if given.heads:
        print(ship_heads(given.heads, records()['heads_on_recordings']))
        raise SystemExit
    if not given.cards: print(*ship(Setup.at(given.scale, given.seed)).values(), sep='\n')
    found = records()
    print(*write_cards(found['table1_reasoner_size'], found['music_or_not']).values(), sep='\n')
