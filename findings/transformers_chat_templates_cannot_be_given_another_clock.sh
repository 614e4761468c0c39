#!/usr/bin/env bash
# transformers 5.23.0: a chat template may ask for the date by `strftime_now(format)`, the clock of the machine. `apply_chat_template` hands its
# further keyword arguments to the template, and they go before the template's own functions; but all of them are made plain first, and of a
# function remains its kind's name as text. So `strftime_now=my_clock` is never called: a template that calls it ends in TypeError ('str' object
# is not callable), and one that asks first whether it can be called goes its way without a clock, without a word. No argument fixes the date
# of a prompt for a test or a repeated run, unless the template reads it from a variable (`date_string` in some), which can be given as text.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 numpy==2.2.6 jinja2==3.1.6
HF_HUB_OFFLINE=1 "$here/venv/bin/python" - <<'PYTHON'
from datetime import datetime
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
words = Tokenizer(models.WordLevel({'[UNK]': 0, 'hello': 1}, unk_token='[UNK]'))
words.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer, asked = PreTrainedTokenizerFast(tokenizer_object=words, unk_token='[UNK]'), []
def clock(form):
    asked.append(form)
    return datetime(1999, 5, 1).strftime(form)
def written(template, **kw):
    try:
        return tokenizer.apply_chat_template([dict(role='user', content='hello')], chat_template=template, tokenize=False, **kw)
    except TypeError as e: return f'TypeError, {e}'
calls = "{{ strftime_now('%Y') }}: {{ messages[0].content }}"
careful = "{% if strftime_now is callable %}{{ strftime_now('%Y') }}{% else %}no clock{% endif %}"
reads = "{% if date_string is not defined %}{% set date_string = strftime_now('%Y') %}{% endif %}{{ date_string }}"
year = str(datetime.now().year)
seen = dict(
    own=written(calls), given=written(calls, strftime_now=clock), shown=written('{{ strftime_now }}', strftime_now=clock),
    careful=[written(careful), written(careful, strftime_now=clock)], reads=[written(reads), written(reads, date_string='1999')])
print(f'transformers {transformers.__version__}: {seen}; the given clock was asked {len(asked)} times')
assert not asked and seen == dict(
    own=f'{year}: hello', given="TypeError, 'str' object is not callable", shown='<function>',
    careful=[year, 'no clock'], reads=[year, '1999']), 'this has changed'
PYTHON
