"Lenses on other families, and characters that are several tokens."
import pytest
import torch
from cast import apart, questions, random_lm

from interlat.models.lm import *
from interlat.instruments.lens import *
from interlat.instruments.moments import *


@pytest.mark.parametrize('family', ['llama', 'gpt2', 'gemma2', 'cohere', 'granite', 'gpt_neox'])
def test_the_head_says_what_the_model_says(family):
    kw = dict(gemma2=dict(head_dim=4, final_logit_softcapping=3.), cohere=dict(logit_scale=.25), granite=dict(logits_scaling=4.), gpt2=dict(n_embd=16, n_layer=2, n_head=4, n_inner=32)).get(family, {})
    lm = random_lm(family, **kw).double()
    ids = torch.arange(3, 13)[None]
    with torch.no_grad(): out = lm(ids, output_hidden_states=True)
    assert apart(head_logits(lm, out.hidden_states[-1][0]), out.logits[0]) < 1e-9
    early = head_logits(lm, out.hidden_states[1][0], 1)
    assert apart(early, head_logits(lm, final_norm(lm)(out.hidden_states[1][0]).detach())) < 1e-9


@pytest.mark.parametrize('output', ['x² + 1', '√2 × π = é', 'naïve 中 ok', 'plain'])
def test_moments_of_an_answer_are_whole_characters(output):
    tok = load_tokenizer('tiny-math')
    moments = question_moments(questions(1)[0], output, tok)
    assert ''.join(m.said for m in moments) == output and all('\ufffd' not in m.written + m.said for m in moments)
    assert [m.written for m in moments[1:]] == [a.written + a.said for a in moments[:-1]]
