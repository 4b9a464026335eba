"Every test runs quietly, without a display and without a network."
import os

os.environ.update(LOGOCENTRIC_QUIET='1', MPLBACKEND='agg', HF_HUB_OFFLINE='1', TOKENIZERS_PARALLELISM='false')
