"Miniatures of every published data set, with every trap we know of, and what tests of data sets share."
from pathlib import Path
import pytest
from logocentric.core import shared_path

shared = lambda *parts: shared_path().joinpath('data', *parts)

def real(*parts):
    "Mark a test that needs real lists or sounds, which may lie beside the checkout."
    there = shared_path() and shared(*parts).exists()
    return pytest.mark.skipif(not there, reason=f"shared data {'/'.join(parts)} is not there")


def put(path: Path, text: str = 'sound', encoding: str = 'utf-8') -> Path:
    "A file with this text; by default a few bytes in place of sound."
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding=encoding, newline='')
    return path


# --- single lists

JAMENDO = 'TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS\n'
CLOTHO = 'file_name,caption_1,caption_2,caption_3,caption_4,caption_5\n'
FMA = (',set,set,track,track\n,split,subset,genre_top,title\ntrack_id,,,,\n2,training,small,Hip-Hop,"a\nb, c"\n'
       '5,test,small,Rock,c\n7,validation,small,Folk,\n9,training,medium,Rock,d\n11,training,large,,e\n')
EVAL_SEGMENTS = ('# Segments csv created\n# num_ytids=2, num_segs=2, num_unique_labels=2\n'
                 '# YTID, start_seconds, end_seconds, positive_labels\n'
                 '--aaaaaaaaa, 30.000, 40.000, "/m/1,/m/2"\nYbbbbbbbbbb, 0.000, 10.000, "/m/1"\n')
VOCABULARY = ('0,Electric_guitar,/m/a\n1,Guitar,/m/b\n2,Accelerating_and_revving_and_vroom,/m/c\n'
              '3,Keyboard_(musical),/m/d\n')
MUSICCAPS = ('ytid,start_s,end_s,audioset_positive_labels,aspect_list,caption,author_id,is_balanced_subset,'
             'is_audioset_eval\n'
             '-0Gj8-vB1q4,30,40,"/m/1,/m/2","[\'sad\', ""rock \'n\' roll""]","x",4,False,True\n'
             '1e10aaaaaaa,0,10,/m/1,[],plain,4,False,False\n')
SONGS = ('caption_id,track_id,caption,is_valid_subset,familiarity,artist_id,album_id,path,duration\n'
         '1,1004034,calm,True,0,1,2,34/1004034.mp3,202.5\n2,1004034,"slow, sad",,0,1,2,34/1004034.mp3,202.5\n'
         '3,200,odd,False,0,1,2,00/200.mp3,60\n')
MOODS = dict(train='track_1\ta\tb\t48/948.mp3\t212.7\tmood/theme---calm\tmood/theme---dark\tmood/theme---deep\n',
             validation='track_2\ta\tb\t1/1.mp3\t2\tmood/theme---calm\n',
             test='track_3\ta\tb\t2/2.mp3\t2\tmood/theme---calm\n')
AUDIOCAPS = 'audiocap_id,youtube_id,start_time,caption\n'


# --- whole sets: path -> text, or nothing for a sound

MINI = dict(
    gtzan={'genres_original/blues/blues.00000.wav': '', 'genres_original/hiphop/hiphop.00099.au': '',
           'genres_original/jazz/._jazz.00001.wav': ''},
    fma_small={'fma_metadata/tracks.csv': FMA, 'fma_small/000/000002.mp3': '', 'fma_small/000/000005.mp3': ''},
    audioset={'class_labels_indices.csv': 'index,mid,display_name\n0,/m/1,"Speech"\n'
                                          '1,/m/2,"Male speech, man speaking"\n',
              'eval_segments.csv': EVAL_SEGMENTS, 'wavs/a/Y--aaaaaaaaa.flac': ''},
    esc50={'meta/esc50.csv': 'filename,fold,target,category,esc10,src_file,take\n'
                             '1-1-A-12.wav,1,12,crackling_fire,True,1,A\n2-2-A-7.wav,2,7,rooster,False,2,A\n',
           'audio/1-1-A-12.ogg': ''},
    fsd50k={'FSD50K.ground_truth/dev.csv': 'fname,labels,mids,split\n64760,"Electric_guitar,Guitar","/m/a,/m/b",train\n'
                                           '1,Accelerating_and_revving_and_vroom,/m/c,val\n',
            'FSD50K.ground_truth/eval.csv': 'fname,labels,mids\n37199,Keyboard_(musical),/m/d\n',
            'FSD50K.dev_audio/64760.wav': '', 'FSD50K.ground_truth/vocabulary.csv': VOCABULARY},
    openmic2018={'openmic-2018-aggregated-labels.csv': 'sample_key,instrument,relevance,num_responses\n'
                                                       '000046_3840,flute,0.1,3\n000046_3840,mallet_percussion,0.5,3\n',
                 'class-map.json': '{"drums": 0, "flute": 1, "mallet_percussion": 2}',
                 'partitions/split01_train.csv': '000046_3840\n', 'partitions/split01_test.csv': '000178_3840\n',
                 'audio/000/000046_3840.ogg': ''},
    magnatagatune={'annotations_final.csv': '"clip_id"\t"no voice"\t"harp"\t"mp3_path"\n"2"\t"1"\t"1"\t"f/a.mp3"\n'
                                            '"6"\t"0"\t"1"\t"c/b.mp3"\n"8"\t"0"\t"0"\t"0/c.mp3"\n',
                   'mp3/f/a.mp3': '', '0/c.mp3': ''},
    mtg_jamendo={**{f'data/splits/split-{k}/autotagging_moodtheme-{part}.tsv': JAMENDO + row
                    for k in (0, 1) for part, row in MOODS.items()},
                 'data/autotagging_moodtheme.tsv': JAMENDO + ''.join(f'track_{i}\ta\tb\t1/1.mp3\t2\tmood/theme---rare\n'
                                                                     for i in (1, 2, 3, 4)),
                 'audio/48/948.low.mp3': '', 'audios/1/1.mp3': ''},
    musiccaps={'musiccaps-public.csv': MUSICCAPS, 'wav/[-0Gj8-vB1q4]-[30-40].wav': ''},
    song_describer={'song_describer.csv': SONGS, 'audio/34/1004034.2min.mp3': ''},
    clotho={'clotho_captions_development.csv': CLOTHO + '"Café, inside.wav",a,b,c,d,"e, f"\n',
            'clotho_captions_evaluation.csv': CLOTHO + '"Café, inside.wav",g,h,i,j,k\n',
            'development/Cafe\u0301, inside.wav': ''},
    audiocaps={'dataset/train.csv': AUDIOCAPS + '1,abc,30,"A man, far"\n',
               'dataset/test.csv': AUDIOCAPS + '2,-ab,0,A dog barks\n3,-ab,0,"Barking, near"\n',
               'audio/-ab_0_10.wav': ''})


def mini(folder: Path, name: str) -> Path:
    "Write the miniature of a set below a folder."
    for path, text in MINI[name].items(): put(folder/name/path, text or 'sound')
    return folder/name


def row(manifest, id: str):
    "The one row of a clip."
    found = manifest.table[manifest.table.id == id]
    assert len(found) == 1, list(manifest.table.id)
    return found.iloc[0]
